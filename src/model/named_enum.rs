//! A macro for enums whose variants have fixed names.

/// An enum whose variants have fixed names in JSON, SQL and on the command line.
macro_rules! named_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[doc = $meaning:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[doc = $meaning])+ #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The fixed name.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }

            /// What it means, in a sentence: its documentation.
            pub fn meaning(self) -> &'static str {
                match self { $($name::$variant => concat!($($meaning),+).trim_start(),)+ }
            }

            /// The variant of that name, compared exactly.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some($name::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use named_enum;
