//! `attesto openapi`: what `/openapi.json` answers, without a service.

use super::context::{Context, Failure};

/// Prints the description, indented.
pub fn run(context: &Context) -> Result<(), Failure> {
    let description = crate::service::description();
    let text = serde_json::to_string_pretty(&description)
        .map_err(|problem| Failure::refused(problem.to_string()))?;
    context.output.content(&description, &text)?;
    Ok(())
}
