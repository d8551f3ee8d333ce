//! One object of a configuration, taken key by key: what is left over at the end was not known.

use serde_json::{Map, Value};

use super::super::error::{CniError, Code};

/// Lines for standard error: each names a key that has no effect here, and why.
#[derive(Debug, Default)]
pub(super) struct Notes(pub(super) Vec<String>);

impl Notes {
    pub(super) fn add(&mut self, path: &str, why: &str) {
        self.0.push(format!("`{path}` has no effect: {why}"));
    }
}

/// The keys that nobody has asked for yet. As for Go's programs, `null` and an empty text are as good as nothing.
#[derive(Debug)]
pub(super) struct Fields {
    /// Path of the object, `""` for the whole configuration.
    at: String,
    left: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(at: impl Into<String>, object: Map<String, Value>) -> Self {
        Self { at: at.into(), left: object }
    }

    /// How messages name a key.
    pub(super) fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    /// The key is there, and says nothing.
    pub(super) fn has_null(&mut self, key: &str) -> bool {
        self.left.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, CniError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|t| !t.is_empty())),
            Some(other) => Err(self.wrong_type(key, &other, "a text")),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, CniError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong_type(key, &other, "true or false")),
        }
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<u32>, CniError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(key, &value, "a whole number that is not negative")),
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Result<Vec<Value>, CniError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(self.wrong_type(key, &other, "a list")),
        }
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, CniError> {
        let list = self.list(key)?;
        let text = |value| match value {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, &other, "texts only in this list")),
        };
        list.into_iter().map(text).collect()
    }

    /// The object of this name; one that is missing is empty.
    pub(super) fn object(&mut self, key: &str) -> Result<Self, CniError> {
        match self.take(key) {
            None => Ok(Self::new(self.path(key), Map::new())),
            Some(Value::Object(object)) => Ok(Self::new(self.path(key), object)),
            Some(other) => Err(self.wrong_type(key, &other, "an object")),
        }
    }

    /// A list of objects.
    pub(super) fn objects(&mut self, key: &str) -> Result<Vec<Self>, CniError> {
        let list = self.list(key)?;
        let object = |value| match value {
            Value::Object(object) => Ok(Self::new(self.path(key), object)),
            other => Err(self.wrong_type(key, &other, "objects only in this list")),
        };
        list.into_iter().map(object).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Texts that say something to other programs, and change nothing here.
    pub(super) fn accept_texts(&mut self, keys: &[&str]) -> Result<(), CniError> {
        keys.iter().try_for_each(|key| self.text(key).map(drop))
    }

    /// Keys that say nothing new, whatever they hold.
    pub(super) fn accept(&mut self, keys: &[&str]) {
        for key in keys {
            self.left.remove(*key);
        }
    }

    /// Keys that may be there and do nothing.
    pub(super) fn no_effect(&mut self, keys: &[&str], why: &str, notes: &mut Notes) {
        for key in keys {
            if self.take(key).is_some() {
                notes.add(&self.path(key), why);
            }
        }
    }

    /// A switch that cannot be turned on here.
    pub(super) fn refuse_if_on(&mut self, key: &str, why: &str) -> Result<(), CniError> {
        if self.flag(key)? == Some(true) { Err(self.unsupported(key, why)) } else { Ok(()) }
    }

    /// The end: what was not asked for is not known.
    pub(super) fn finish(self, notes: &mut Notes) {
        for key in self.left.keys() {
            notes.add(&self.path(&shortened(&key.escape_debug().to_string())), "it is not known here");
        }
    }

    /// Lists and objects may hold secrets, and are long.
    pub(super) fn wrong_type(&self, key: &str, found: &Value, want: &str) -> CniError {
        let found = match found {
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            scalar => shortened(&scalar.to_string()),
        };
        decode(format!("`{}` is {found}: want {want}", self.path(key)))
    }

    pub(super) fn unsupported(&self, key: &str, why: &str) -> CniError {
        CniError::new(Code::UnsupportedField, format!("`{}` is not supported", self.path(key)), why)
    }

    /// The value is readable, and cannot be.
    pub(super) fn invalid(&self, key: &str, value: impl std::fmt::Debug, why: impl Into<String>) -> CniError {
        CniError::new(
            Code::InvalidConfig,
            format!("`{}` is {}", self.path(key), shortened(&format!("{value:?}"))),
            why,
        )
    }
}

/// A message is one line.
fn shortened(text: &str) -> String {
    const MAX: usize = 120;
    if text.chars().count() <= MAX {
        text.to_owned()
    } else {
        text.chars().take(MAX).chain("…".chars()).collect()
    }
}

pub(super) fn decode(details: impl Into<String>) -> CniError {
    CniError::new(Code::Decode, "cannot read the network configuration", details)
}
