//! The integration tests of this crate, as one program: the client against a fake agent that
//! speaks the real messages over a real link.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod all {
    mod dial;
    mod exec;
    mod fake;
    mod files;
    mod session;
    mod single;

    #[test]
    fn every_file_is_listed() {
        let source = include_str!("all.rs");
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all")).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let module = name.trim_end_matches(".rs");
            assert!(source.contains(&format!("mod {module};")), "{name} is not run");
        }
    }
}
