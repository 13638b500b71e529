//! `attesto openapi`: prints the OpenAPI document without a running service.

use super::context::{CommandContext, CommandError};

pub(crate) fn run(context: &CommandContext) -> Result<(), CommandError> {
    let description = crate::app::openapi_document();
    let text = serde_json::to_string_pretty(&description)
        .map_err(|problem| CommandError::failed(problem.to_string()))?;
    context.output.write_raw_text(&description, &text)?;
    Ok(())
}
