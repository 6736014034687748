//! A provider whose every second answer is hostile, in about a hundred ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::checker::Promise;
use super::clients::Load;
use super::ledger::{Answer, Request, Step, response};
use super::{Attack, LONG, SHORT};

/// A hostile answer.
type Variant = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_break_no_promise() {
    answer_hostilely(SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs minutes: run make chaos"]
async fn hostile_answers_for_a_minute_break_no_promise() {
    answer_hostilely(LONG).await;
}

async fn answer_hostilely(duration: Duration) {
    let mut attack = Attack::new("hostile answers", duration).await;
    attack.rules.statuses = &[200, 201, 422, 502, 503, 504];
    attack.rules.loses_nothing = true;
    let groups = [members(), statuses(), bodies(), heads(), connections()];
    let variants: Vec<Variant> = groups.into_iter().flatten().collect();
    let count = variants.len();
    let calls = Arc::new(AtomicUsize::new(0));
    let next = calls.clone();
    attack.ledger.set_behaviour(move |request| {
        let call = next.fetch_add(1, Ordering::Relaxed);
        // The normal answers keep the circuit closed.
        match call % 2 {
            0 => Answer::normal(request),
            _ => variants[call / 2 % variants.len()](request),
        }
    });
    let replicas = attack.start_replicas(2, &[]).await;
    let load = Load {
        callers: 48,
        users: 120,
        ..Load::default()
    };
    let clients = attack.start_clients(&load);
    while attack.needs(2 * count, calls.load(Ordering::Relaxed)) {
        sleep(Duration::from_millis(100)).await;
    }
    let sent = calls.load(Ordering::Relaxed) / 2;
    assert!(sent >= count, "only {sent} of {count} kinds");
    let promises = [
        Promise::I2MintRecorded,
        Promise::I4NotExpired,
        Promise::I6NoGuess,
        Promise::I7ClearErrors,
    ];
    let faults = format!("{sent} answers of {count} kinds");
    attack.finish(clients, replicas, faults, &promises).await;
}

/// Creates an answer with a token that the service must not hand out.
fn hostile(request: &Request, steps: Vec<Step>) -> Answer {
    Answer {
        is_good: false,
        steps,
        ..Answer::normal(request)
    }
}

/// Creates an unusual answer that the service may accept.
fn unusual(request: &Request, steps: Vec<Step>) -> Answer {
    Answer {
        steps,
        ..Answer::normal(request)
    }
}

fn created(body: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::Send(response("201 Created", body.as_ref()))]
}

/// Returns 201s with a wrong member, without a member, or with an unusual member.
fn members() -> Vec<Variant> {
    let past = |seconds| (Utc::now() - TimeDelta::seconds(seconds)).to_rfc3339();
    let wrong = [
        ("tokenString", json!("")),
        ("tokenString", json!("t".repeat(513))),
        ("tokenString", json!(12345)),
        ("tokenString", json!(["t"])),
        ("tokenString", json!({"value": "t"})),
        ("tokenString", Value::Null),
        ("isValid", json!(false)),
        ("isValid", json!("true")),
        ("isValid", json!(1)),
        ("isValid", Value::Null),
        ("expiration", json!("tomorrow")),
        ("expiration", json!("")),
        ("expiration", json!(1_900_000_000)),
        ("expiration", json!("2099-01-01T00:00:00")),
        ("expiration", json!("2099-02-30T00:00:00Z")),
        ("expiration", json!("9999-12-31T23:59:59-14:00")),
        ("expiration", json!("-2099-01-01T00:00:00Z")),
        ("expiration", json!("0000-01-01T00:00:00+14:00")),
        ("expiration", Value::Null),
        ("expiration", json!(past(2))),
        ("expiration", json!(past(86_400))),
        ("country", json!("LV")),
        ("country", json!("")),
        ("country", json!(7)),
        ("bank", json!("Swedbank")),
        ("bank", json!("")),
        ("bank", json!(7)),
        ("bank", Value::Null),
        ("access", json!({"accounts": true})),
        ("access", json!({"transactions": "yes"})),
        ("access", json!("all")),
        ("access", json!([true, true, true])),
    ];
    let wrong = wrong.map(|(member, value)| {
        variant(move |request| {
            let mut document = request.document.clone();
            document[member] = value.clone();
            hostile(request, created(document.to_string()))
        })
    });
    let missing = ["tokenString", "expiration", "isValid"].map(|member| {
        variant(move |request| {
            let mut document = request.document.clone();
            document.as_object_mut().unwrap().remove(member);
            hostile(request, created(document.to_string()))
        })
    });
    let characters = [
        "\0",
        "\r\nset-cookie: x",
        "\u{1b}[31m",
        "\u{202e}",
        " ",
        "\"}",
        "\u{10ffff}",
    ];
    let characters = characters.map(|text| {
        variant(move |request| {
            let token = format!("{}{text}", request.token);
            let mut document = request.document.clone();
            document["tokenString"] = token.clone().into();
            Answer {
                token: Some(token),
                ..unusual(request, created(document.to_string()))
            }
        })
    });
    let mut variants = Vec::from(characters);
    variants.extend(wrong);
    variants.extend(missing);
    variants.push(variant(|request| {
        let mut document = request.document.clone();
        document["expiration"] = "2099-01-01T00:00:00Z".into();
        unusual(request, created(document.to_string()))
    }));
    // A shorter life than requested. `Date` has whole seconds, so the service cannot see a difference below a second.
    variants.push(variant(|request| {
        let mut document = request.document.clone();
        let life = Duration::from_secs(1);
        document["expiration"] = (Utc::now() + life).to_rfc3339().into();
        Answer {
            life,
            ..unusual(request, created(document.to_string()))
        }
    }));
    // The same token for all combinations.
    variants.push(variant(|request| {
        let mut document = request.document.clone();
        document["tokenString"] = "the-same-for-all".into();
        Answer {
            token: Some("the-same-for-all".into()),
            ..unusual(request, created(document.to_string()))
        }
    }));
    variants
}

fn variant(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Variant {
    Box::new(answer)
}

/// Returns answers with another status and a token that must not be used.
fn statuses() -> Vec<Variant> {
    let statuses = [
        200, 202, 203, 204, 206, 300, 301, 302, 304, 307, 308, 400, 401, 402, 403, 404, 405, 407,
        408, 409, 410, 418, 422, 429, 451, 500, 501, 502, 503, 504, 505, 599, 600, 999,
    ];
    let answers = statuses.map(|status| {
        variant(move |request| {
            let location = "Status\r\nlocation: /bank/tokens/";
            let answer = response(
                &format!("{status} {location}"),
                request.document.to_string().as_bytes(),
            );
            let mut answer = hostile(request, vec![Step::Send(answer)]);
            // The provider minted nothing, as the status says.
            if matches!(status, 300..=404 | 407 | 409 | 422 | 429 | 503) {
                answer.token = None;
            }
            answer
        })
    });
    answers.into()
}

/// Returns 201s with a body that is not the documented one.
fn bodies() -> Vec<Variant> {
    let texts = [
        "",
        "null",
        "[]",
        "\"text\"",
        "5",
        "{}",
        "<html>Created</html>",
        "tokenString=t&isValid=true",
        "{'tokenString': 't'}",
    ];
    let texts = texts.map(|text| variant(move |request| hostile(request, created(text))));
    let changes: [fn(&str) -> Vec<u8>; 16] = [
        |body| body[..body.len() / 2].into(),
        |body| body[..body.len() - 1].into(),
        |body| format!("{body}{body}").into(),
        |body| format!("{body}}}").into(),
        |body| format!("[{body}]").into(),
        |body| format!("{{\"data\":{body}}}").into(),
        |body| format!("// comment\n{body}").into(),
        |body| format!("\u{feff}{body}").into(),
        |body| format!("\0{body}").into(),
        |body| body.replace('}', ",}").into(),
        |body| {
            body.replace("isValid\":", "isValid\":true,\"isValid\":")
                .into()
        },
        |body| {
            body.replace("tokenString\":\"", "tokenString\":\"\\ud800")
                .into()
        },
        |body| {
            body.replace('{', &format!("{{\"deep\":{},", "[".repeat(5_000)))
                .into()
        },
        |body| format!("{body}{}", " ".repeat(64 * 1024)).into(),
        |body| body.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        |body| {
            let mut bytes = Vec::from(body);
            let token = body.find("tokenString").unwrap();
            bytes[token + 20] = 0xff;
            bytes
        },
    ];
    let changes = changes.map(|change| {
        variant(move |request| hostile(request, created(change(&request.document.to_string()))))
    });
    let accepted: [fn(&str) -> Vec<u8>; 4] = [
        |body| format!("\r\n\t {body} \n").into(),
        |body| format!("{body}{}", " ".repeat(60_000)).into(),
        |body| body.replacen('{', "{\"number\":1e999,", 1).into(),
        |body| [&b"{\"text\":\"\xff\","[..], &body.as_bytes()[1..]].concat(),
    ];
    let accepted = accepted.map(|change| {
        variant(move |request| unusual(request, created(change(&request.document.to_string()))))
    });
    let large = variant(|request| {
        let padding = vec![b' '; 2 * 1024 * 1024];
        hostile(request, created(padding))
    });
    let mut variants = vec![large];
    variants.extend(texts);
    variants.extend(changes);
    variants.extend(accepted);
    variants
}

/// Returns the normal body behind a head that breaks HTTP, or uses it unusually. `LENGTH` stands for its length.
fn heads() -> Vec<Variant> {
    let later = |hours| {
        let date = Utc::now() + TimeDelta::hours(hours);
        format!(
            "date: {}\r\ncontent-length: LENGTH",
            date.format("%a, %d %b %Y %H:%M:%S GMT")
        )
    };
    let many = format!("{}content-length: LENGTH", "x-more: 1\r\n".repeat(2_000));
    let long = format!(
        "x-long: {}\r\ncontent-length: LENGTH",
        "x".repeat(2_000_000)
    );
    let broken = [
        "HTTP/1.1 201 Created\r\ncontent-length: 9000",
        "HTTP/1.1 201 Created\r\ncontent-length: 50",
        "HTTP/1.1 201 Created\r\ncontent-length: -1",
        "HTTP/1.1 201 Created\r\ncontent-length: many",
        "HTTP/1.1 201 Created\r\ncontent-length: 99999999999999999999",
        "HTTP/1.1 201 Created\r\ncontent-length: 5\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked",
        "HTTP/1.1 201 Created\r\ntransfer-encoding: gzip, chunked\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\nno colon\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\n: no name\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\nx-nul: \0\r\ncontent-length: LENGTH",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: tls\r\nconnection: upgrade",
        "HTTP/1.1 1000 Created\r\ncontent-length: LENGTH",
        "HTTP/1.1 99 Created\r\ncontent-length: LENGTH",
        "HTTP/2.0 201 Created\r\ncontent-length: LENGTH",
        "http/1.1 201 Created\r\ncontent-length: LENGTH",
        "ICY 201 Created\r\ncontent-length: LENGTH",
        "201 Created\r\ncontent-length: LENGTH",
        &format!("HTTP/1.1 201 Created\r\n{many}"),
        &format!("HTTP/1.1 201 Created\r\n{long}"),
        &format!("HTTP/1.1 201 Created\r\n{}", later(2)),
    ]
    .map(|head| head_variant(head, false));
    let unusual = [
        "HTTP/1.1 201 Created\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\ndate: yesterday\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\ncontent-type: text/html\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\ncontent-encoding: gzip\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 Created\r\nx-text: \u{fffd}\r\ncontent-length: LENGTH",
        "HTTP/1.1 201 \r\ncontent-length: LENGTH",
        "HTTP/1.1 201\r\ncontent-length: LENGTH",
        "HTTP/1.0 201 Created",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: LENGTH",
        "HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: LENGTH",
        &format!("HTTP/1.1 201 Created\r\n{}", later(-1)),
    ]
    .map(|head| head_variant(head, true));
    broken.into_iter().chain(unusual).collect()
}

fn head_variant(head: &str, is_good: bool) -> Variant {
    let head = head.to_owned();
    variant(move |request| {
        let body = request.document.to_string();
        let head = head.replace("LENGTH", &body.len().to_string());
        let steps = vec![
            Step::Send(format!("{head}\r\n\r\n{body}").into()),
            Step::Close,
        ];
        Answer {
            is_good,
            ..unusual(request, steps)
        }
    })
}

/// Returns connections that end, stall or send something else than one response.
fn connections() -> Vec<Variant> {
    let wait = |milliseconds| Step::Wait(Duration::from_millis(milliseconds));
    let garbage: [&[u8]; 5] = [
        b"\x15\x03\x03\0\x02\x02\x28",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff\xfe\0\x01\r\n\r\n",
        b"",
    ];
    let garbage = garbage.map(|bytes| {
        variant(move |request| hostile(request, vec![Step::Send(bytes.into()), Step::Close]))
    });
    // A part of the normal response, before the connection ends or stalls.
    let parts = [0.05, 0.3, 0.6, 0.95].map(|part| {
        [true, false].map(|hangs| {
            variant(move |request| {
                let response = response("201 Created", request.document.to_string().as_bytes());
                let sent = response[..(response.len() as f64 * part) as usize].into();
                let end = if hangs { Step::Hang } else { Step::Close };
                hostile(request, vec![Step::Send(sent), end])
            })
        })
    });
    let drips = [(50, false), (1, true)].map(|(pause_ms, is_good)| {
        variant(move |request| {
            let response = response("201 Created", request.document.to_string().as_bytes());
            let bytes = response.into_iter();
            let steps = bytes.flat_map(|byte| [wait(pause_ms), Step::Send(vec![byte])]);
            Answer {
                is_good,
                ..unusual(request, steps.collect())
            }
        })
    });
    let others = [
        variant(|request| hostile(request, vec![Step::Hang])),
        variant(move |request| {
            let mut steps = vec![wait(600)];
            steps.extend(Answer::normal(request).steps);
            unusual(request, steps)
        }),
        // The second response would answer the next request of the connection.
        variant(|request| {
            let mut stolen = request.document.clone();
            stolen["tokenString"] = format!("stolen-{}", request.token).into();
            stolen.as_object_mut().unwrap().remove("bank");
            let responses = [&request.document, &stolen]
                .map(|document| response("201 Created", document.to_string().as_bytes()));
            unusual(request, vec![Step::Send(responses.concat())])
        }),
        variant(|request| {
            let head = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut steps = vec![Step::Send(head.into())];
            let chunk = [b"8000\r\n", &[b' '; 0x8000][..], b"\r\n"].concat();
            steps.extend((0..64).map(|_| Step::Send(chunk.clone())));
            steps.push(Step::Hang);
            hostile(request, steps)
        }),
        variant(|request| {
            let mut steps = vec![Step::Send(b"HTTP/1.1 201 Created\r\n".into())];
            let headers = "x-more: 1\r\n".repeat(1_000);
            steps.extend((0..100).map(|_| Step::Send(headers.clone().into())));
            steps.push(Step::Hang);
            hostile(request, steps)
        }),
    ];
    let mut variants = Vec::from(others);
    variants.extend(garbage);
    variants.extend(parts.into_iter().flatten());
    variants.extend(drips);
    variants
}
