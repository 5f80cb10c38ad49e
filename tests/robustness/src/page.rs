//! Replaces single sections of a Markdown page.

/// Returns the page with the text below this heading replaced, up to the next heading of level 2. A new section is added at
/// the end.
pub fn with_section(page: &str, heading: &str, text: &str) -> String {
    let starts_section = |line: &str| line.starts_with("## ");
    let (mut before, mut after) = (String::new(), String::new());
    let mut section = Section::Before;
    for line in page.lines() {
        section = match section {
            Section::Before if line == heading => Section::Replaced,
            Section::Replaced if starts_section(line) => Section::After,
            section => section,
        };
        match section {
            Section::Before => before = before + line + "\n",
            Section::Replaced => {}
            Section::After => after = after + line + "\n",
        }
    }
    let page = format!("{}\n\n{heading}\n\n{}\n\n{after}", before.trim_end(), text.trim_end());
    page.trim_end().to_owned() + "\n"
}

/// Position of a line relative to the section that is replaced.
enum Section {
    Before,
    Replaced,
    After,
}
