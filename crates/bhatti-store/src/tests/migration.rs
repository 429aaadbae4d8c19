//! Databases of former programs.

use bhatti_types::{EngineId, Phase, SandboxId, UserId};
use rusqlite::Connection;

use crate::migrate::MIGRATIONS;
use crate::{Change, Store, StoreError};

const OLD_PHASES: [Phase; 5] =
    [Phase::Creating, Phase::Hot, Phase::Stopped, Phase::Unknown, Phase::Destroying];

/// A database as the first schema had it, with a sandbox in each of its phases, and an image.
fn first_schema() -> (tempfile::TempDir, Connection, UserId) {
    let dir = tempfile::tempdir().unwrap();
    let old = Connection::open(dir.path().join("state.db")).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let owner = UserId::random();
    let sql = "INSERT INTO users (id, name, api_key_hash, max_sandboxes, subnet_index, created_at)
               VALUES (?1, 'alice', 'h', 9, 1, '2026-01-01T00:00:00Z')";
    old.execute(sql, [owner.as_str()]).unwrap();
    for (i, phase) in (0_u32..).zip(OLD_PHASES) {
        old.execute(
            "INSERT INTO sandboxes VALUES (?1, ?2, ?3, ?3 || '-host', ?4, ?5, 'why', ?6,
                 'minimal', 1500, 1024, 64, 1, '{\"k\":\"v\"}', '{\"A\":\"1\"}', 'run', 'digest',
                 ?7, '{\"file\":\"f\"}', '{\"pid\":1}', '2026-01-02T00:00:00Z', ?8)",
            rusqlite::params![
                SandboxId::random().as_str(),
                owner.as_str(),
                phase.as_str(),
                EngineId::random().as_str(),
                phase.as_str(),
                format!("10.0.1.{}", i + 2),
                1000 + i,
                (phase == Phase::Stopped).then_some("2026-01-03T00:00:00Z"),
            ],
        )
        .unwrap();
    }
    let sql =
        "INSERT INTO images VALUES ('i', '', 'minimal', 's', '/i', 9, '2026-01-01T00:00:00Z')";
    old.execute(sql, []).unwrap();
    (dir, old, owner)
}

/// Every row of the old tables, in the columns the first schema had.
fn contents(connection: &Connection) -> Vec<String> {
    let columns = "id, owner, name, hostname, engine_id, phase, reason, ip, image, milli_cpus, \
         memory_mb, disk_size_mb, keep_hot, labels, env, init, files_digest, vmm_uid, root_disk, \
         vm, created_at, stopped_at";
    let dump = |sql: &str| {
        let mut statement = connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement.query_map([], |row| {
            let values = (0..width).map(|i| row.get::<_, rusqlite::types::Value>(i));
            Ok(format!("{:?}", values.collect::<Result<Vec<_>, _>>()?))
        });
        rows.unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let mut all = dump(&format!("SELECT {columns} FROM sandboxes ORDER BY id"));
    all.extend(dump("SELECT * FROM users"));
    all.extend(dump("SELECT * FROM images"));
    all
}

#[test]
fn sleep_keeps_what_the_first_schema_had() {
    let (dir, old, owner) = first_schema();
    let before = contents(&old);
    assert_eq!(before.len(), OLD_PHASES.len() + 2);
    drop(old);
    let mut store = Store::open(&dir.path().join("state.db")).unwrap();
    assert_eq!(contents(&store.connection), before);

    let (rows, unreadable) = store.all_sandboxes().unwrap();
    assert_eq!((rows.len(), unreadable.len()), (OLD_PHASES.len(), 0));
    for row in &rows {
        assert_eq!(row.changed_at, row.created_at);
        assert_eq!((row.serial, row.hugepages, &row.golden), (0, false, &None));
        assert!(row.generations.is_empty());
    }
    let hot = rows.iter().find(|row| row.phase == Phase::Hot).unwrap();
    for (from, to) in [(Phase::Hot, Phase::Warm), (Phase::Warm, Phase::Cold)] {
        store.set_phase(&hot.id, &[from], to, "idle", &Change::default()).unwrap();
    }
    assert!(matches!(store.delete_user("alice"), Err(StoreError::UserHasSandboxes(5))));
    assert!(store.find_sandbox(&owner, "hot").unwrap().is_some());
}

#[test]
fn the_constraints_are_still_there() {
    let (dir, old, _) = first_schema();
    drop(old);
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    for (column, value) in [
        ("phase", "'asleep'"),
        ("owner", "'usr_nobody'"),
        ("name", "'hot'"),
        ("engine_id", "(SELECT engine_id FROM sandboxes WHERE name = 'hot')"),
        ("ip", "(SELECT ip FROM sandboxes WHERE name = 'hot')"),
        ("vmm_uid", "(SELECT vmm_uid FROM sandboxes WHERE name = 'hot')"),
        ("golden", "'0123456789abcdef'"),
        ("generations", "'[1,2,3]'"),
        ("generations", "'{}'"),
        ("generations", "'nonsense'"),
        ("serial", "-1"),
        ("changed_at", "NULL"),
        ("shell_token_hash", "'a token itself'"),
    ] {
        let sql = format!("UPDATE sandboxes SET {column} = {value} WHERE name = 'stopped'");
        let refused = store.connection.execute(&sql, []);
        let code = refused.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
        assert_eq!(code, Some(rusqlite::ErrorCode::ConstraintViolation), "{sql}: {refused:?}");
    }
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let (dir, old, _) = first_schema();
    let before = contents(&old);
    // In the way of the second step, after the new tables are made and the rows are copied.
    old.execute_batch("CREATE TABLE snapshots (x TEXT)").unwrap();
    let refused = Store::open(&dir.path().join("state.db")).err().unwrap();
    assert!(matches!(refused, StoreError::Migration { number: 2, .. }), "{refused}");
    assert_eq!(contents(&old), before);
    old.execute_batch("DROP TABLE snapshots").unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    assert_eq!(contents(&store.connection), before);
}
