//! Policies: what a pattern matches, and which list wins.

use super::{
    NOT_ALLOWED, STORED,
    answers::{Findings, none_of, refusal_text},
};
use crate::harness::{App, api_key};

#[test]
fn patterns_are_prefixes_or_whole_paths_and_deny_beats_allow() {
    struct Case {
        allow: &'static [&'static str],
        deny: &'static [&'static str],
        /// Method, path and status: 403, or the status of a request that the policy allows.
        calls: &'static [(&'static str, &'static str, u16)],
    }
    const CASES: &[Case] = &[
        // Deny beats allow, whichever is the longer.
        Case {
            allow: &["/v1/key/describe/*"],
            deny: &["/v1/key/describe/kept"],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/legacy", 200),
                ("GET", "/v1/key/describe/bad.name", 400),
            ],
        },
        Case {
            allow: &["/v1/key/describe/kept"],
            deny: &["/v1/key/*"],
            calls: &[("GET", "/v1/key/describe/kept", 403)],
        },
        Case {
            allow: &["/v1/key/describe/kept"],
            deny: &["/v1/key/describe/kept"],
            calls: &[("GET", "/v1/key/describe/kept", 403)],
        },
        // A prefix goes across slashes.
        Case {
            allow: &["/v1/key/*"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 200),
                ("GET", "/v1/key/describe/a/b", 400),
                ("POST", "/v1/key/generate/missing", 404),
                ("GET", "/v1/key/list/", 200),
                ("GET", "/v1/policy/list/", 403),
                ("GET", "/v1/status", 403),
            ],
        },
        // A prefix need not end at a slash.
        Case {
            allow: &["/v1/key/describe/ke*"],
            deny: &["/v1/key/describe/kept-*"],
            calls: &[
                ("GET", "/v1/key/describe/kept", 200),
                ("GET", "/v1/key/describe/kept-chacha", 403),
                ("GET", "/v1/key/describe/ke", 404),
                ("GET", "/v1/key/describe/legacy", 403),
            ],
        },
        Case {
            allow: &["/v1/sta*"],
            deny: &[],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/api", 403)],
        },
        Case {
            allow: &["*"],
            deny: &[],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/key/describe/kept", 200)],
        },
        // A pattern without a star at its end is a whole path.
        Case {
            allow: &["/v1/key/describe/", "/v1/stat", "v1/api"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/", 400),
                ("GET", "/v1/status", 403),
                ("GET", "/v1/api", 403),
            ],
        },
        // Stars elsewhere, question marks and brackets are themselves: this deny rule protects nothing, as in KES.
        Case {
            allow: &["/v1/key/*"],
            deny: &["/v1/key/*/kept", "/v1/key/describe/kep?", "/v1/key/describe/[k]ept"],
            calls: &[("GET", "/v1/key/describe/kept", 200)],
        },
        Case {
            allow: &["/v1/key/describe/*/x", "/v1/key/describe/**", "/v1/*/describe/kept"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/a/x", 403),
                // Allowed, because the path is spelt like the pattern; no key can have this name.
                ("GET", "/v1/key/describe/%2A/x", 400),
                ("GET", "/v1/key/describe/%2Akept", 400),
            ],
        },
        // Nothing is allowed by default, and an empty pattern matches nothing, in either list.
        Case { allow: &[], deny: &[], calls: &[("GET", "/v1/status", 403), ("GET", "/v1/ready", 403)] },
        Case {
            allow: &["", "/v1/status"],
            deny: &[""],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/api", 403)],
        },
        // A policy judges the path, whatever the method; a wrong method is refused before the policy is read.
        Case {
            allow: &["/v1/key/generate/kept"],
            deny: &[],
            calls: &[
                ("PUT", "/v1/key/generate/kept", 200),
                ("POST", "/v1/key/generate/kept", 200),
                ("GET", "/v1/key/generate/kept", 405),
                ("GET", "/v1/key/describe/missing", 403),
                ("POST", "/v1/key/describe/missing", 405),
            ],
        },
        // A route that needs no permission cannot be denied.
        Case {
            allow: &[],
            deny: &["*"],
            calls: &[
                ("GET", "/version", 200),
                ("GET", "/v1/identity/self/describe", 200),
                ("GET", "/v1/nowhere", 404),
                ("GET", "/v1/key/create", 301),
                ("GET", "/v1/api", 403),
            ],
        },
    ];
    let key_of = |number: usize| api_key(30 + u8::try_from(number).unwrap());
    let mut policies = "policy:\n".to_owned();
    for (number, case) in CASES.iter().enumerate() {
        policies += &format!(
            "  case-{number}:\n    allow: {:?}\n    deny: {:?}\n    identities: [\"{}\"]\n",
            case.allow,
            case.deny,
            key_of(number).identity().as_str()
        );
    }
    let kes = App::server(&policies);
    for (name, text) in STORED {
        kes.store.put(name, text);
    }
    let mut findings = Findings::default();
    for (number, case) in CASES.iter().enumerate() {
        for http1 in [true, false] {
            let client = kes.client(Some(&key_of(number)), http1);
            for (method, path, status) in case.calls {
                let Case { allow, deny, .. } = case;
                let about = format!("allow {allow:?} and deny {deny:?}: expected {status}");
                findings.judge((&client, http1), (method, path), &about, |got| {
                    let is_judgement = got.body == refusal_text(NOT_ALLOWED);
                    got.status == *status && is_judgement == (*status == 403)
                });
            }
        }
    }
    none_of(&findings.0);
}
