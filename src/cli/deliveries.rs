//! `attesto deliveries`: whether anything is sent at all.

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::deliveries::hold::{WaitingDeliveries, store};
use crate::replicas::host_name;

/// The commands of `attesto deliveries`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// Whether deliveries are held, and how many wait
    Status,
    /// Begin no delivery any more, in any process, until they are released. What arrives is stored and waits
    Hold,
    /// Send what was held: every process begins at once
    Release,
}

/// Runs one of them.
pub(crate) async fn run(
    command: DeliveriesCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    match command {
        DeliveriesCommand::Status => {}
        DeliveriesCommand::Hold => {
            if !store::hold_deliveries(&database, &host_name()).await? {
                return Err(CommandError::failed("deliveries are held already."));
            }
        }
        DeliveriesCommand::Release => {
            // Before they are gone.
            let waiting = store::count_waiting_deliveries(&database).await?;
            let Some(hold) = store::release_hold(&database, &host_name()).await? else {
                return Err(CommandError::failed("deliveries are not held."));
            };
            let released = DeliveryHoldView::new(None, waiting);
            context.output.write_json_or_text(
                &released,
                &format!(
                    "Released what was held since {}: {}",
                    hold.held_at,
                    released.to_prose()
                ),
            )?;
            return Ok(());
        }
    }
    let waiting = store::count_waiting_deliveries(&database).await?;
    let shown = DeliveryHoldView::new(store::load_active_hold(&database).await?, waiting);
    context
        .output
        .write_json_or_text(&shown, &shown.to_prose())?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeliveryHoldView {
    held: bool,
    held_at: Option<Timestamp>,
    held_by: Option<String>,
    #[serde(flatten)]
    waiting: WaitingDeliveries,
}

impl DeliveryHoldView {
    fn new(
        hold: Option<crate::deliveries::hold::DeliveryHold>,
        waiting: WaitingDeliveries,
    ) -> Self {
        Self {
            held: hold.is_some(),
            held_at: hold.as_ref().map(|hold| hold.held_at),
            held_by: hold.map(|hold| hold.held_by),
            waiting,
        }
    }

    fn to_prose(&self) -> String {
        let WaitingDeliveries {
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
