//! Reading columns into types, with an error that names the column.

use rusqlite::Row;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// A row of `table` whose key is known, for error messages.
pub(crate) struct Reader<'r, 'c> {
    pub(crate) row: &'r Row<'c>,
    pub(crate) table: &'static str,
    pub(crate) key: String,
}

impl Reader<'_, '_> {
    pub(crate) fn get<T: rusqlite::types::FromSql>(
        &self,
        column: &'static str,
    ) -> Result<T, StoreError> {
        self.row.get(column).map_err(|_| self.corrupt(column))
    }

    /// A text column that parses into `T`.
    pub(crate) fn parse<T: std::str::FromStr>(
        &self,
        column: &'static str,
    ) -> Result<T, StoreError> {
        self.get::<String>(column)?.parse().map_err(|_| self.corrupt(column))
    }

    /// A text column that holds JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.get::<String>(column)?).map_err(|_| self.corrupt(column))
    }

    /// The same where NULL is allowed.
    pub(crate) fn json_opt<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        match self.get::<Option<String>>(column)? {
            None => Ok(None),
            Some(text) => serde_json::from_str(&text).map(Some).map_err(|_| self.corrupt(column)),
        }
    }

    fn corrupt(&self, column: &'static str) -> StoreError {
        StoreError::Corrupt { table: self.table, key: self.key.clone(), column }
    }
}

/// Collects the rows of a query whose mapper has errors of its own.
pub(crate) fn all<T>(
    mut rows: rusqlite::Rows<'_>,
    read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

/// JSON for a column. Only maps and plain records of ours get here.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records of ours always serialise")
}
