//! The body of a request for a token.

use super::fault::{Detail, Faults};
use super::fields;
use super::json::{Json, members};
use crate::model::{Access, Combination, Country};

/// The longest life of a token, in seconds.
const MAX_LIFETIME: f64 = 2_592_000.0;

/// The life of a token whose request does not say, in seconds.
const DEFAULT_LIFETIME: i32 = 3600;

/// The body of `POST /bank/tokens/`; a part is `None` where it has a fault.
#[derive(Default, PartialEq, Debug)]
pub struct IssueToken {
    /// What the token is for.
    pub combination: Option<Combination>,
    /// Seconds to ask of the upstream, 0…2592000.
    pub lifetime: Option<i32>,
}

impl IssueToken {
    /// Reads the document and notes every fault of it.
    pub fn from_json(document: Json, faults: &mut Faults) -> Self {
        let names = ["userId", "lifetime", "country", "bank", "access"];
        let Some([user_id, lifetime, country, bank, access]) =
            members(document, "#", names, faults)
        else {
            return IssueToken::default();
        };
        let user_id = fields::text(user_id).and_then(fields::user_id);
        let user_id = faults.field("#/userId", user_id);
        let lifetime = faults.field("#/lifetime", read_lifetime(lifetime));
        let country = faults.field("#/country", read_country(country));
        let bank = faults.field("#/bank", read_bank(bank));
        let access = access.map_or(Some(Access::default()), |access| {
            read_access(access, faults)
        });
        let combination = || {
            Some(Combination {
                user_id: user_id?,
                country: country?,
                bank: bank?,
                access: access?,
            })
        };
        IssueToken {
            combination: combination(),
            lifetime,
        }
    }
}

/// An integer in the sense of JSON Schema: `3600.0` and `1e3` are.
fn read_lifetime(value: Option<Json>) -> Result<i32, Detail> {
    match value {
        None => Ok(DEFAULT_LIFETIME),
        Some(Json::Number(number)) => {
            let is_good = number.fract() == 0.0 && (0.0..=MAX_LIFETIME).contains(&number);
            is_good
                .then_some(number as i32)
                .ok_or(Detail::Borrowed("must be an integer from 0 to 2592000"))
        }
        Some(other) => Err(other.instead_of("an integer from 0 to 2592000").into()),
    }
}

fn read_country(value: Option<Json>) -> Result<Option<Country>, Detail> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => fields::country(&text).map(Some),
        Some(other) => Err(other.instead_of("a string or null").into()),
    }
}

fn read_bank(value: Option<Json>) -> Result<Option<String>, Detail> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => fields::bank(text).map(Some),
        Some(other) => Err(other.instead_of("a string or null").into()),
    }
}

fn read_access(value: Json, faults: &mut Faults) -> Option<Access> {
    let names = ["accounts", "balances", "transactions"];
    let values = members(value, "#/access", names, faults)?;
    let mut flags = [Some(false); 3];
    for ((flag, value), name) in flags.iter_mut().zip(values).zip(names) {
        *flag = match value {
            None => Some(false),
            Some(Json::Bool(value)) => Some(value),
            Some(other) => {
                faults.pointer(format!("#/access/{name}"), other.instead_of("a boolean"));
                None
            }
        };
    }
    Some(Access {
        accounts: flags[0]?,
        balances: flags[1]?,
        transactions: flags[2]?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request, and the pointers of its faults.
    fn read(document: &str) -> (IssueToken, Vec<String>) {
        let mut faults = Faults::default();
        let document = Json::parse(document.as_bytes()).expect("JSON");
        let request = IssueToken::from_json(document, &mut faults);
        let faults = serde_json::to_value(faults.into_vec()).unwrap();
        let pointer = |fault: &serde_json::Value| fault["pointer"].as_str().unwrap().to_owned();
        (
            request,
            faults.as_array().unwrap().iter().map(pointer).collect(),
        )
    }

    #[test]
    fn absent_fields_have_their_defaults() {
        for document in [
            r#"{"userId": "u-1"}"#,
            r#"{"userId": "u-1", "country": null, "bank": null, "access": {}, "lifetime": 3600}"#,
        ] {
            let (request, faults) = read(document);
            assert!(faults.is_empty(), "{faults:?}");
            assert_eq!(request.lifetime, Some(3600));
            let expected = Combination {
                user_id: "u-1".into(),
                country: None,
                bank: None,
                access: Access::default(),
            };
            assert_eq!(request.combination, Some(expected));
        }
    }

    #[test]
    fn good_and_bad_values() {
        let long = "ž".repeat(32);
        let cases = [
            ("lifetime", "0 | -0 | 3600.0 | 1e3 | 2592000 | 2.592e6"),
            ("country", r#""LT" | null"#),
            ("bank", r#""Swedbank" | null | "a b" | "\u017d" | "LONG""#),
            ("access", r#"{} | {"accounts": true}"#),
        ];
        for (name, good) in cases {
            for value in good.replace("LONG", &long).split(" | ") {
                let (_, faults) = read(&format!(r#"{{"userId": "u", "{name}": {value}}}"#));
                assert!(faults.is_empty(), "{name} {value}: {faults:?}");
            }
        }
        let cases = [
            (
                "lifetime",
                r#"-1 | 2592001 | 3600.5 | 1e300 | 18446744073709551616 | "3600""#,
            ),
            ("lifetime", "null | true | [] | {}"),
            ("country", r#""lt" | "" | "US" | 1 | []"#),
            (
                "bank",
                r#""" | "LONGž" | " a" | "a " | "a\u00a0" | "\u2003a" | 7 | false"#,
            ),
            ("bank", r#""a\u0000b" | "a\u0085b""#),
            ("access", r#"null | [] | true | "accounts""#),
            ("userId", r#"null | "" | 7 | "a\u0000" | ["u"]"#),
        ];
        for (name, bad) in cases {
            for value in bad.replace("LONG", &long).split(" | ") {
                let user = if name == "userId" {
                    ""
                } else {
                    r#""userId": "u","#
                };
                let (request, faults) = read(&format!(r#"{{{user} "{name}": {value}}}"#));
                assert_eq!(faults, [format!("#/{name}")], "{value}");
                assert!(request.combination.is_none() || request.lifetime.is_none());
            }
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let (request, faults) = read(
            r##"{"lifetime": -1, "country": "xx", "bank": " ", "x/y": 1, "country": "LT",
                "access": {"accounts": 1, "balances": null, "foo": true, "accounts": true}}"##,
        );
        assert_eq!(request, IssueToken::default());
        let expected = "#/x~1y #/country #/userId #/lifetime #/country #/bank \
                        #/access/foo #/access/accounts #/access/accounts #/access/balances";
        assert_eq!(faults.join(" "), expected);
        for document in ["[]", "null", "3", "\"x\""] {
            assert_eq!(read(document).1, ["#"]);
        }
    }
}
