//! Enumerations that are shown to people: number, slug and sentence of each member in one place.

macro_rules! list {
    ($(#[$doc:meta])* $name:ident: $($(#[$variant_doc:meta])* $variant:ident = $value:literal $slug:literal $sentence:literal),+ $(,)?) => {
        $(#[$doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant = $value),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Short, stable, for scripts.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$variant => $slug),+ }
            }

            /// For people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence),+ }
            }

            pub const fn from_index(index: u8) -> Option<Self> {
                match index { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}
pub(crate) use list;
