//! Images: who may use which file.

use bhatti_types::{ImageId, Mib, UserId};
use camino::Utf8PathBuf;
use jiff::Timestamp;
use rusqlite::Row;

use crate::row::{Reader, all};
use crate::{Store, StoreError};

/// A root file system image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    pub id: ImageId,
    /// `None`: built in, everybody's.
    pub owner: Option<UserId>,
    pub name: String,
    pub source: String,
    pub file: Utf8PathBuf,
    pub size: Mib,
    pub created_at: Timestamp,
}

fn read(row: &Row<'_>) -> Result<ImageRow, StoreError> {
    let r = Reader { row, table: "images", key: row.get("id").unwrap_or_default() };
    let owner: String = r.get("owner")?;
    Ok(ImageRow {
        id: ImageId::from(r.get::<String>("id")?),
        owner: if owner.is_empty() { None } else { Some(r.parse("owner")?) },
        name: r.get("name")?,
        source: r.get("source")?,
        file: Utf8PathBuf::from(r.get::<String>("file_path")?),
        size: Mib(r.get("size_mb")?),
        created_at: r.parse("created_at")?,
    })
}

impl Store {
    /// Makes the built-in images exactly `found`: adds, refreshes and forgets.
    pub fn set_builtin_images(&mut self, found: &[ImageRow]) -> Result<(), StoreError> {
        let tx = self.connection.transaction()?;
        let known: Vec<String> = {
            let mut statement = tx.prepare("SELECT name FROM images WHERE owner = ''")?;
            let names = statement.query_map([], |row| row.get(0))?;
            names.collect::<Result<_, _>>()?
        };
        for gone in known.iter().filter(|name| !found.iter().any(|image| &&image.name == name)) {
            tx.execute("DELETE FROM images WHERE owner = '' AND name = ?1", [gone])?;
        }
        for image in found {
            tx.execute(
                "INSERT INTO images (id, owner, name, source, file_path, size_mb, created_at)
                 VALUES (?1, '', ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (owner, name) DO UPDATE SET
                     file_path = excluded.file_path, size_mb = excluded.size_mb",
                rusqlite::params![
                    image.id.as_str(),
                    image.name,
                    image.source,
                    image.file.as_str(),
                    image.size.0,
                    image.created_at.to_string(),
                ],
            )?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Every image `user` sees, their own before built-in ones.
    pub fn images_for(&self, user: &UserId) -> Result<Vec<ImageRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT * FROM images WHERE owner IN (?1, '') ORDER BY owner = '', name",
        )?;
        all(statement.query([user.as_str()])?, read)
    }
}
