//! The combination: the key under which tokens are reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The 28 country codes of the provider's contract (`BankTokenCountryEnum`).
const COUNTRIES: [&str; 28] = [
    "AT", "BE", "BG", "HR", "CY", "DK", "EE", "FI", "FR", "DE", "GR", "HU", "IS", "IE", "IT", "LV",
    "LT", "LU", "MT", "NL", "NO", "PL", "PT", "RO", "SK", "SI", "ES", "SE",
];

/// One of the 28 country codes that the provider accepts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Country(u8);

impl Country {
    /// Returns every country, in the order of the provider's contract.
    pub fn all() -> impl Iterator<Item = Country> {
        (0..COUNTRIES.len() as u8).map(Country)
    }

    /// Returns the two upper-case letters of the country.
    pub fn code(self) -> &'static str {
        COUNTRIES[usize::from(self.0)]
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// Error: the text is not one of the 28 country codes.
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

/// The account data that the holder of a token may read.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize,
)]
#[serde(default)]
pub struct Access {
    /// The accounts themselves.
    pub accounts: bool,
    /// The balances of the accounts.
    pub balances: bool,
    /// The transactions of the accounts.
    pub transactions: bool,
}

impl Access {
    /// Returns three bits: accounts 1, balances 2, transactions 4.
    pub fn bits(self) -> i16 {
        i16::from(self.accounts) | i16::from(self.balances) << 1 | i16::from(self.transactions) << 2
    }

    /// Returns the names of the granted parts: `accounts`, `balances`, `transactions`.
    pub fn names(self) -> Vec<&'static str> {
        let parts = [
            (self.accounts, "accounts"),
            (self.balances, "balances"),
            (self.transactions, "transactions"),
        ];
        let granted = parts.into_iter().filter(|(is_granted, _)| *is_granted);
        granted.map(|(_, name)| name).collect()
    }

    /// Reverses [`bits`](Access::bits). Ignores higher bits.
    pub fn from_bits(bits: i16) -> Self {
        Access {
            accounts: bits & 1 != 0,
            balances: bits & 2 != 0,
            transactions: bits & 4 != 0,
        }
    }
}

/// The key of reuse. Two requests share a token only if all four parts are equal, byte by byte.
///
/// An absent country or bank means "any". It equals only another absent one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Combination {
    /// The calling company's opaque id of its user, 1–128 characters.
    pub user_id: Box<str>,
    /// The country of the bank. `None` means any country.
    pub country: Option<Country>,
    /// The bank, as the provider names it, 1–32 characters. `None` means any bank.
    pub bank: Option<Box<str>>,
    /// The account data that may be read.
    pub access: Access,
}

impl Combination {
    /// Returns the country as the database stores it. Empty means "any".
    pub fn country_key(&self) -> &str {
        self.country.map_or("", Country::code)
    }

    /// Returns the bank as the database stores it. Empty means "any", because the name of a bank is never empty.
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
    fn access_converts_to_bits_and_back() {
        for bits in 0..8 {
            assert_eq!(Access::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn only_the_exact_country_codes_parse() {
        assert_eq!("LT".parse::<Country>().unwrap().code(), "LT");
        for wrong in ["lt", "LT ", "", "US", "GB"] {
            assert_eq!(wrong.parse::<Country>(), Err(UnknownCountry));
        }
    }
}
