//! `attesto deliveries`: whether anything is sent at all.

use serde::Serialize;

use super::context::{Context, Failure};
use crate::clock::Timestamp;
use crate::deliveries::hold::{Waiting, store};
use crate::replicas::host;

/// The commands of `attesto deliveries`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Whether deliveries are held, and how many wait
    Status,
    /// Begin no delivery any more, in any process, until they are released. What arrives is stored and waits
    Hold,
    /// Send what was held: every process begins at once
    Release,
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    match command {
        Command::Status => {}
        Command::Hold => {
            if !store::hold(&database, &host()).await? {
                return Err(Failure::refused("deliveries are held already."));
            }
        }
        Command::Release => {
            // Before they are gone.
            let waiting = store::waiting(&database, context.clock.lead()).await?;
            let Some(hold) = store::release(&database, &host()).await? else {
                return Err(Failure::refused("deliveries are not held."));
            };
            let released = Shown::of(None, waiting);
            context.output.sentence(
                &released,
                &format!(
                    "Released what was held since {}: {}",
                    hold.held_at,
                    released.prose()
                ),
            )?;
            return Ok(());
        }
    }
    let waiting = store::waiting(&database, context.clock.lead()).await?;
    let shown = Shown::of(store::standing(&database).await?, waiting);
    context.output.sentence(&shown, &shown.prose())?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    held: bool,
    held_at: Option<Timestamp>,
    held_by: Option<String>,
    #[serde(flatten)]
    waiting: Waiting,
}

impl Shown {
    fn of(hold: Option<crate::deliveries::hold::Hold>, waiting: Waiting) -> Self {
        Self {
            held: hold.is_some(),
            held_at: hold.as_ref().map(|hold| hold.held_at),
            held_by: hold.map(|hold| hold.held_by),
            waiting,
        }
    }

    fn prose(&self) -> String {
        let Waiting {
            due,
            later,
            kept_back,
        } = self.waiting;
        let kept_back = match kept_back {
            0 => String::new(),
            count => format!(
                " Another {count} wait for a person, or for a tenant or callback to be switched on."
            ),
        };
        match (&self.held_at, &self.held_by) {
            (Some(since), Some(by)) => format!(
                "Held since {since} by {by}. `attesto deliveries release` would send {due} at once and {later} later.{kept_back}"
            ),
            _ => format!("{due} are to be sent now and {later} later.{kept_back}"),
        }
    }
}
