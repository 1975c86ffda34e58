"""What the checks of the documentation need to know of Markdown."""
import pathlib
import re
import subprocess

TOP = pathlib.Path(__file__).resolve().parents[2]


def documents():
    """Every Markdown file that is tracked, or will be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=TOP, capture_output=True, text=True
    )
    names = listed.stdout.split() if listed.returncode == 0 else []
    found = [TOP / name for name in names] or [path for path in TOP.rglob("*.md") if not {"target", ".peers"} & set(path.parts)]
    return sorted(path for path in found if path.is_file())


def fences(text):
    """Each fenced block: the line where the block begins, the words after the fence, and the text."""
    blocks, inside = [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"^(`{3,}|~{3,})\s*(.*)$", line)
        if inside is None and fence:
            inside = (number, fence[1], fence[2].split(), [])
        elif inside is not None and fence and fence[1] == inside[1] and not fence[2]:
            blocks.append((inside[0], inside[2], "\n".join(inside[3]) + "\n"))
            inside = None
        elif inside is not None:
            inside[3].append(line)
    assert inside is None, f"the block of line {inside[0]} has no end"
    return blocks


def prose(text):
    """The text without its fenced blocks."""
    kept, fence = [], None
    for line in text.splitlines():
        mark = re.match(r"^(`{3,}|~{3,})", line)
        if mark and fence is None:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = None
        elif fence is None:
            kept.append(line)
    return "\n".join(kept)


def anchors(text):
    """The anchors of the headings, as the usual renderers name them."""
    seen, names = {}, set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose(text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        names.add(slug if count == 0 else f"{slug}-{count}")
    return names
