//! The results: medians, ratios and goals, as a table, JSON and a chart.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Returns the median, or NaN for no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Returns the percentile, or NaN for no values.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len() * percent / 100)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The goal of a ratio, or of the figure itself if there is no rival.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Goal::AtLeast(min) => figure >= min,
            Goal::AtMost(max) => figure <= max,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(min) => write!(f, "≥ {}", format_number(*min)),
            Goal::AtMost(max) => write!(f, "≤ {}", format_number(*max)),
        }
    }
}

/// A measurement of the service and optionally of a rival, with one value per round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub measurement: String,
    pub unit: String,
    pub ours: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<(String, Vec<f64>)>,
    /// The median of the ratios of all rounds, service to rival.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_met: Option<bool>,
}

/// The results of one section of the benchmark, measured in one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub at: String,
    pub seconds: f64,
    pub machine: String,
    /// The share of the CPU time that other guests of the machine took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stolen: Option<f64>,
    pub lines: Vec<Line>,
}

impl Section {
    /// Adds a figure without a rival.
    pub fn add(&mut self, measurement: &str, unit: &str, ours: &[f64], goal: Option<Goal>) {
        self.lines.push(Line {
            measurement: measurement.into(),
            unit: unit.into(),
            ours: ours.to_vec(),
            rival: None,
            ratio: None,
            goal,
            is_met: goal.map(|goal| goal.is_met(median(ours))),
        });
    }

    /// Adds a figure and that of a rival in the same rounds.
    pub fn compare(
        &mut self,
        measurement: &str,
        unit: &str,
        ours: &[f64],
        rival: (&str, &[f64]),
        goal: Option<Goal>,
    ) {
        let (name, theirs) = rival;
        let ratios: Vec<_> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        let ratio = median(&ratios);
        self.lines.push(Line {
            measurement: measurement.into(),
            unit: unit.into(),
            ours: ours.to_vec(),
            rival: Some((name.into(), theirs.to_vec())),
            ratio: Some(ratio),
            goal,
            is_met: goal.map(|goal| goal.is_met(ratio)),
        });
    }

    pub fn read(folder: &Path, name: &str) -> Result<Section> {
        let text = fs::read_to_string(folder.join(format!("{name}.json")))?;
        Ok(serde_json::from_str(&text)?)
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(format!("{}.json", self.name));
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }
}

/// Formats the results as a Markdown table.
pub fn table<'a>(lines: impl IntoIterator<Item = &'a Line>) -> String {
    let headers = [
        "Measurement",
        "Service",
        "Compared with",
        "Ratio",
        "Goal",
        "",
    ];
    let mut rows = vec![headers.map(String::from)];
    rows.push(["---", "---:", "---", "---:", "---:", "---"].map(String::from));
    for line in lines {
        let figure = |values: &[f64]| {
            let figure = format!("{} {}", format_number(median(values)), line.unit);
            figure.trim_end().to_owned()
        };
        let rival = line.rival.as_ref();
        rows.push([
            line.measurement.clone(),
            figure(&line.ours),
            rival.map_or(String::new(), |(name, theirs)| {
                format!("{name}: {}", figure(theirs))
            }),
            line.ratio.map_or(String::new(), format_number),
            line.goal.map_or(String::new(), |goal| goal.to_string()),
            line.is_met
                .map_or("", |is_met| if is_met { "met" } else { "**missed**" })
                .into(),
        ]);
    }
    let lines = rows.iter().map(|row| format!("| {} |\n", row.join(" | ")));
    lines.collect()
}

/// Draws the rates of a section as a bar chart in SVG, with the service in colour.
pub fn chart(section: &Section) -> String {
    let (row, left, max_width) = (34, 290, 580.0);
    let mut bars: Vec<(&str, f64, bool)> = Vec::new();
    for line in section.lines.iter().filter(|line| line.unit == "/s") {
        let ours = (line.measurement.as_str(), median(&line.ours), true);
        let rival = line.rival.as_ref();
        let rival = rival.map(|(name, theirs)| (name.as_str(), median(theirs), false));
        for bar in [Some(ours), rival].into_iter().flatten() {
            // A rival that is the service itself already has a bar.
            if !bars
                .iter()
                .any(|known| known.0 == bar.0 || known.1 == bar.1)
            {
                bars.push(bar);
            }
        }
    }
    bars.sort_by(|a, b| b.1.total_cmp(&a.1));
    let highest = bars.first().map_or(1.0, |bar| bar.1);
    let (height, text_end) = (bars.len() * row + 40, left - 10);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-family="system-ui, sans-serif" font-size="14">
<style>text {{ fill: #333 }} .ours {{ fill: #0a7d5a }} .rival {{ fill: #9aa3ad }} @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} .ours {{ fill: #35c493 }} .rival {{ fill: #6b7480 }} }}</style>
<text x="{left}" y="20">requests per second, {}</text>
"##,
        section.machine
    );
    for (at, (name, rate, is_ours)) in bars.iter().enumerate() {
        let (y, width) = (at * row + 34, (rate / highest * max_width) as usize);
        let (middle, class) = (y + 17, if *is_ours { "ours" } else { "rival" });
        let (number, end) = (format_number(*rate), left + width + 8);
        svg += &format!(
            r#"<text x="{text_end}" y="{middle}" text-anchor="end">{name}</text><rect class="{class}" x="{left}" y="{y}" width="{width}" height="24" rx="3"/><text x="{end}" y="{middle}">{number}</text>
"#
        );
    }
    svg + "</svg>\n"
}

/// Formats a positive number: whole numbers with thousands separators from 1,000 on, else three digits.
pub fn format_number(value: f64) -> String {
    if value >= 1000.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        return text;
    }
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
