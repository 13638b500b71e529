//! `attesto deliveries`: holds and releases all deliveries.

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::deliveries::hold::{DeliveryHold, WaitingDeliveries, store};
use crate::replicas::host_name;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// Show whether deliveries are held, and how many wait
    Status,
    /// Hold all deliveries on every replica until they are released; new events are stored and wait
    Hold,
    /// Release held deliveries; every replica starts sending at once
    Release,
}

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
            // Counted before the release, because sending starts at once.
            let waiting = store::count_waiting_deliveries(&database).await?;
            let Some(hold) = store::release_hold(&database, &host_name()).await? else {
                return Err(CommandError::failed("deliveries are not held."));
            };
            let released = DeliveryHoldView::new(None, waiting);
            context.output.write_json_or_text(
                &released,
                &format!(
                    "Released the deliveries held since {}: {}",
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
    fn new(hold: Option<DeliveryHold>, waiting: WaitingDeliveries) -> Self {
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
                " Another {count} wait until their tenant or callback is activated, or an operator acts."
            ),
        };
        match (&self.held_at, &self.held_by) {
            (Some(since), Some(by)) => format!(
                "Held since {since} by {by}. `attesto deliveries release` would send {due} at once and {later} later.{kept_back}"
            ),
            _ => format!("Not held: {due} are due now and {later} later.{kept_back}"),
        }
    }
}
