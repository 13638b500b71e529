//! Draws what a benchmark measured as SVG charts, for the pages of docs/.

use std::path::Path;

use attesto::config;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Names the folder that the charts are written to. Without it none is drawn.
const FOLDER: &str = "ATTESTO_BENCH_CHARTS";
const WIDTH: u32 = 760;
const BAR_HEIGHT: u32 = 34;
/// The title above the bars, and the axis below them.
const AROUND_THE_BARS: u32 = 110;
/// For the labels on the left.
const LABEL_WIDTH: u32 = 260;
const MEASURED: RGBColor = RGBColor(47, 111, 176);
const YARDSTICK: RGBColor = RGBColor(158, 166, 176);

/// A bar of a chart.
#[derive(Clone)]
pub(crate) struct Bar {
    label: String,
    value: f64,
    color: RGBColor,
}

/// What Attesto was measured at.
pub(crate) fn measured(label: impl Into<String>, value: f64) -> Bar {
    Bar {
        label: label.into(),
        value,
        color: MEASURED,
    }
}

/// What it is compared with.
pub(crate) fn yardstick(label: impl Into<String>, value: f64) -> Bar {
    Bar {
        label: label.into(),
        value,
        color: YARDSTICK,
    }
}

/// Draws `<name>.svg`, with the bars from top to bottom. The values are in `unit`.
pub(crate) fn draw(name: &str, title: &str, unit: &str, bars: &[Bar]) {
    let Some(folder) = config::read_env_var(FOLDER) else {
        return;
    };
    let file = Path::new(&folder).join(format!("{name}.svg"));
    draw_bars(&file, title, unit, bars).expect("the chart can be written");
}

fn draw_bars(
    file: &Path,
    title: &str,
    unit: &str,
    bars: &[Bar],
) -> Result<(), Box<dyn std::error::Error>> {
    let count = bars.len();
    let height = u32::try_from(count)? * BAR_HEIGHT + AROUND_THE_BARS;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let longest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(LABEL_WIDTH)
        // Room for the number beside the longest bar.
        .build_cartesian_2d(
            0.0..longest * 1.15,
            (0..count.saturating_sub(1)).into_segmented(),
        )?;
    let label = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) => bars
            .get(count - 1 - place)
            .map_or_else(String::new, |bar| bar.label.clone()),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(count)
        .y_label_formatter(&label)
        .x_desc(unit)
        .label_style(("sans-serif", 14))
        .draw()?;
    let places = || bars.iter().rev().enumerate();
    chart.draw_series(places().map(|(place, bar)| {
        let corners = [
            (0.0, SegmentValue::Exact(place)),
            (bar.value, SegmentValue::Exact(place + 1)),
        ];
        let mut shape = Rectangle::new(corners, bar.color.filled());
        shape.set_margin(5, 5, 0, 0);
        shape
    }))?;
    let beside = ("sans-serif", 14).into_text_style(&area);
    let beside = beside.pos(Pos::new(HPos::Left, VPos::Center));
    chart.draw_series(places().map(|(place, bar)| {
        let digits = usize::from(bar.value < 100.0);
        let number = format!(" {:.digits$}", bar.value);
        let at = (bar.value, SegmentValue::CenterOf(place));
        Text::new(number, at, beside.clone())
    }))?;
    area.present()?;
    Ok(())
}
