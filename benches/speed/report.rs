//! What was measured: medians, ratios, goals; as a table and as JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The middle one, or between the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The value that so many per cent are not above.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len() * percent / 100)
        .copied()
        .unwrap_or(f64::NAN)
}

/// What a ratio, or where there is no rival the figure itself, is to come to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Goal::AtLeast(least) => figure >= least,
            Goal::AtMost(most) => figure <= most,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(least) => write!(f, "≥ {}", round(*least)),
            Goal::AtMost(most) => write!(f, "≤ {}", round(*most)),
        }
    }
}

/// A figure of ours beside that of a rival, a value for each round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub path: String,
    pub unit: String,
    pub ours: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<(String, Vec<f64>)>,
    /// The median of each round's ratio, ours to the rival's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_met: Option<bool>,
}

/// The lines of one part of the benchmark, measured in one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub at: String,
    pub seconds: f64,
    pub machine: String,
    /// The share of the processor time wanted meanwhile that other guests of the machine got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stolen: Option<f64>,
    pub lines: Vec<Line>,
}

impl Section {
    /// A figure of ours alone.
    pub fn alone(&mut self, path: &str, unit: &str, ours: &[f64], goal: Option<Goal>) {
        self.lines.push(Line {
            path: path.into(),
            unit: unit.into(),
            ours: ours.to_vec(),
            rival: None,
            ratio: None,
            goal,
            is_met: goal.map(|goal| goal.is_met(median(ours))),
        });
    }

    /// A figure of ours beside a rival's of the same rounds.
    pub fn beside(
        &mut self,
        path: &str,
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
            path: path.into(),
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

/// The lines as a Markdown table.
pub fn table<'a>(lines: impl IntoIterator<Item = &'a Line>) -> String {
    let mut rows = vec![["Path", "Here", "Beside it", "Ratio", "Goal", ""].map(String::from)];
    rows.push(["---", "---:", "---", "---:", "---:", "---"].map(String::from));
    for line in lines {
        let figure = |values: &[f64]| format!("{} {}", round(median(values)), line.unit);
        let rival = line.rival.as_ref();
        rows.push([
            line.path.clone(),
            figure(&line.ours),
            rival.map_or(String::new(), |(name, theirs)| {
                format!("{name}: {}", figure(theirs))
            }),
            line.ratio.map_or(String::new(), round),
            line.goal.map_or(String::new(), |goal| goal.to_string()),
            line.is_met
                .map_or("", |is_met| if is_met { "met" } else { "**missed**" })
                .into(),
        ]);
    }
    let lines = rows.iter().map(|row| format!("| {} |\n", row.join(" | ")));
    lines.collect()
}

/// The requests a second of a section as a picture: a bar each, ours in colour.
pub fn picture(section: &Section) -> String {
    let (row, left, widest) = (34, 250, 620.0);
    let mut bars: Vec<(&str, f64, bool)> = Vec::new();
    for line in section.lines.iter().filter(|line| line.unit == "/s") {
        let ours = (line.path.as_str(), median(&line.ours), true);
        let rival = line.rival.as_ref();
        let rival = rival.map(|(name, theirs)| (name.as_str(), median(theirs), false));
        for bar in [Some(ours), rival].into_iter().flatten() {
            // What is compared with ourselves has a bar already.
            if !bars
                .iter()
                .any(|known| known.0 == bar.0 || known.1 == bar.1)
            {
                bars.push(bar);
            }
        }
    }
    bars.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = bars.first().map_or(1.0, |bar| bar.1);
    let (height, text_end) = (bars.len() * row + 40, left - 10);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-family="system-ui, sans-serif" font-size="14">
<style>text {{ fill: #333 }} .ours {{ fill: #0a7d5a }} .rival {{ fill: #9aa3ad }} @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} .ours {{ fill: #35c493 }} .rival {{ fill: #6b7480 }} }}</style>
<text x="{left}" y="20">requests a second, {}</text>
"##,
        section.machine
    );
    for (at, (name, rate, is_ours)) in bars.iter().enumerate() {
        let (y, width) = (at * row + 34, (rate / most * widest) as usize);
        let (middle, class) = (y + 17, if *is_ours { "ours" } else { "rival" });
        let (number, end) = (round(*rate), left + width + 8);
        svg += &format!(
            r#"<text x="{text_end}" y="{middle}" text-anchor="end">{name}</text><rect class="{class}" x="{left}" y="{y}" width="{width}" height="24" rx="3"/><text x="{end}" y="{middle}">{number}</text>
"#
        );
    }
    svg + "</svg>\n"
}

/// Three digits that count; thousands apart.
pub fn round(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let whole = format!("{value:.0}");
        let (head, tail) = whole.split_at(whole.len() % 3);
        let groups = tail
            .as_bytes()
            .chunks(3)
            .map(|group| String::from_utf8_lossy(group));
        let groups: Vec<_> = [head.into()]
            .into_iter()
            .filter(|head: &std::borrow::Cow<str>| !head.is_empty())
            .chain(groups)
            .collect();
        return groups.join(",");
    }
    let digits = match value.abs() {
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
