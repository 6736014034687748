//! What a token is for: the key under which tokens are reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The 28 country codes of the upstream's contract (`BankTokenCountryEnum`).
const COUNTRIES: [&str; 28] = [
    "AT", "BE", "BG", "HR", "CY", "DK", "EE", "FI", "FR", "DE", "GR", "HU", "IS", "IE", "IT", "LV",
    "LT", "LU", "MT", "NL", "NO", "PL", "PT", "RO", "SK", "SI", "ES", "SE",
];

/// One of the 28 countries that the upstream verifies banks in, exactly as it spells them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Country(u8);

impl Country {
    /// Every country, in the order of the upstream's contract.
    pub fn all() -> impl Iterator<Item = Country> {
        (0..COUNTRIES.len() as u8).map(Country)
    }

    /// The two upper-case letters.
    pub fn code(self) -> &'static str {
        COUNTRIES[usize::from(self.0)]
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// The text is none of the 28 codes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", COUNTRIES.join(", "))]
pub struct UnknownCountry;

impl FromStr for Country {
    type Err = UnknownCountry;

    fn from_str(text: &str) -> Result<Self, UnknownCountry> {
        Country::all()
            .find(|country| country.code() == text)
            .ok_or(UnknownCountry)
    }
}

/// What the holder of a token may read of an account.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize,
)]
#[serde(default)]
pub struct Access {
    /// The accounts themselves.
    pub accounts: bool,
    /// Their balances.
    pub balances: bool,
    /// Their transactions.
    pub transactions: bool,
}

impl Access {
    /// Three bits: accounts 1, balances 2, transactions 4.
    pub fn bits(self) -> i16 {
        i16::from(self.accounts) | i16::from(self.balances) << 1 | i16::from(self.transactions) << 2
    }

    /// The inverse of [`bits`](Access::bits); higher bits are ignored.
    pub fn from_bits(bits: i16) -> Self {
        Access {
            accounts: bits & 1 != 0,
            balances: bits & 2 != 0,
            transactions: bits & 4 != 0,
        }
    }
}

/// The key of reuse: two requests share a token only if all four parts are equal, to the byte.
///
/// An absent country or bank means "any" and is a value of its own: it equals only another
/// absent one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Combination {
    /// The company's own opaque id for its user, 1–128 characters.
    pub user_id: Box<str>,
    /// The country of the bank, or any.
    pub country: Option<Country>,
    /// The bank as the upstream names it, 1–32 characters, or any.
    pub bank: Option<Box<str>>,
    /// What may be read.
    pub access: Access,
}

impl Combination {
    /// The country as the database keys it: empty for "any".
    pub fn country_key(&self) -> &str {
        self.country.map_or("", Country::code)
    }

    /// The bank as the database keys it: empty for "any" (a bank's name is never empty).
    pub fn bank_key(&self) -> &str {
        self.bank.as_deref().unwrap_or("")
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_survives_its_bits() {
        for bits in 0..8 {
            assert_eq!(Access::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn countries_are_exact() {
        assert_eq!("LT".parse::<Country>().unwrap().code(), "LT");
        for wrong in ["lt", "LT ", "", "US", "GB"] {
            assert_eq!(wrong.parse::<Country>(), Err(UnknownCountry));
        }
    }
}
