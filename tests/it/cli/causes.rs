//! `docs/reference/causes.md` is the list of causes, and nothing else: `KESWARDEN_WRITE_DOCS=1 cargo test --test it causes` writes the file anew.

use keswarden::cause::Cause;
use std::{fs, path::Path};

fn page() -> String {
    let mut page = "# Causes\n\nWhy something waits or has failed, as it stands in log lines, `/status`, the label `cause` of metrics, \
                    Kubernetes Events and the termination message. Each line also says what was seen, in the peer's own words, and a fix \
                    that knows more than the general one here. The exit code is that of a command that ends on the cause. This page is \
                    generated from the code.\n\n| cause | means | usual fix | exit |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for cause in Cause::ALL {
        let (id, means, fix, exit) = (cause.id(), cause.meaning(), cause.usual_fix(), cause.exit_code());
        page += &format!("| `{id}` | {means} | {fix} | {exit} |\n");
    }
    page
}

#[test]
fn the_page_of_causes_is_the_list() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/causes.md");
    if std::env::var_os("KESWARDEN_WRITE_DOCS").is_some() {
        fs::write(&file, page()).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), page(), "write it anew: KESWARDEN_WRITE_DOCS=1");
    for cause in Cause::ALL {
        let text = [cause.meaning(), cause.usual_fix()].concat();
        assert!(!text.contains('|') && !text.contains('\n'), "{cause}: a cell of a table is one line");
    }
}
