//! What the daemon holds for a terminal somebody is attached to.

use anyhow::Result;
use bhatti_api::route::Terminal as Wanted;

use super::way::Way;
use crate::memory::Footprint;
use crate::report::{Part, Table};
use crate::subject::{self, RESIDENT, Subject};

/// How many are attached at once, in a guest of 512 MiB.
const ATTACHED: usize = 15;

pub(super) struct Sessions {
    before: Footprint,
    attached: Footprint,
    after: Footprint,
}

impl Sessions {
    pub(super) async fn measure(subject: &mut Subject) -> Result<Self> {
        // One that has given nothing back yet: else they would live in what others have left.
        subject.stop_daemon()?;
        subject.start_daemon();
        subject::exec_true(&subject.client, RESIDENT).await?;
        let serve = subject::newest_daemon(&[])?;
        let way = Way::api(&*subject).await?;
        let Way::Api(api) = &way else { anyhow::bail!("no API") };
        let before = Footprint::of(serve)?;
        let mut terminals = Vec::new();
        for _ in 0..ATTACHED {
            way.rest(1).await?;
            terminals.push(api.client.terminal(RESIDENT, Wanted::New).await?);
        }
        let attached = Footprint::of(serve)?;
        for terminal in terminals {
            terminal.input.write("exit\r".into()).await?;
            let mut output = terminal.output;
            while let Ok(bhatti_client::TerminalEvent::Output(_)) = output.next().await {}
        }
        Ok(Self { before, attached, after: Footprint::of(serve)? })
    }

    pub(super) fn part(&self) -> Part {
        let mut table = Table::new(&["`bhatti serve`", "PSS MiB", "RSS MiB"]);
        let each = (self.attached.pss - self.before.pss) * 1024.0 / ATTACHED as f64;
        for (name, Footprint { pss, rss, .. }) in [
            ("no terminal", self.before),
            ("15 terminals attached", self.attached),
            ("after their end", self.after),
        ] {
            table.row(vec![name.to_owned(), format!("{pss:.2}"), format!("{rss:.2}")]);
        }
        let notes = vec![format!("{each:.0} KiB of the daemon's memory a terminal")];
        Part { tables: vec![table], notes, ..Part::default() }
    }
}
