//! Tables of the calls benchmark: costs, ratios within a round, the work of Redis, and goals.

use super::{
    figures::{Goal, Quartiles, print_table},
    measure::Slice,
};

/// Title of the row that ratios refer to.
pub const ONE_GET: &str = "(b) one GET";
/// Beginning of the titles of the rows of the second program.
pub const BEFORE: &str = "before: ";

/// Slices of one row, one for each round.
pub struct Series {
    pub title: String,
    /// Titles of the rows that the ratios refer to: (a) and (b).
    pub references: [String; 2],
    pub has_redis: bool,
    pub slices: Vec<Slice>,
}

/// What a goal limits.
#[derive(Clone, Copy)]
enum Figure {
    /// Calls per second, as a ratio to (b).
    Rate,
    /// CPU of server and Redis together, as a ratio to (b).
    Cpu,
    /// CPU of Redis, as a ratio to (b): in multiples of a GET.
    RedisToGet,
    /// CPU of Redis in µs.
    Redis,
}

const GOALS: [(&str, Figure, Goal); 14] = {
    use Goal::{AtLeast, AtMost};
    [
        ("GetSession by token", Figure::Rate, AtLeast(0.75)),
        ("GetSession by token", Figure::Cpu, AtMost(1.35)),
        ("GetSession by token", Figure::RedisToGet, AtMost(2.0)),
        ("GetSession, touch not due", Figure::Rate, AtLeast(0.75)),
        ("GetSession, touch not due", Figure::Cpu, AtMost(1.35)),
        ("GetSession, touch not due", Figure::RedisToGet, AtMost(2.0)),
        ("GetSession, touch written", Figure::Rate, AtLeast(0.45)),
        ("UpdateSession, 1 KiB", Figure::Rate, AtLeast(0.38)),
        ("UpdateSession, 1 KiB", Figure::Redis, AtMost(30.0)),
        ("UpdateSession, 16 KiB", Figure::Redis, AtMost(75.0)),
        ("UpdateSession, 64 KiB", Figure::Redis, AtMost(210.0)),
        ("CreateSession", Figure::Rate, AtLeast(0.40)),
        ("CreateSession", Figure::Redis, AtMost(34.0)),
        ("DeleteSession", Figure::Rate, AtLeast(0.40)),
    ]
};

impl Figure {
    fn title(self) -> &'static str {
        match self {
            Figure::Rate => "calls per second to (b)",
            Figure::Cpu => "server and Redis CPU to (b)",
            Figure::RedisToGet => "Redis CPU to (b)",
            Figure::Redis => "Redis CPU, µs per call",
        }
    }

    fn of(self, slice: &Slice, one_get: &Slice) -> f64 {
        match self {
            Figure::Rate => slice.rate / one_get.rate,
            Figure::Cpu => (slice.server + slice.redis) / (one_get.server + one_get.redis),
            Figure::RedisToGet => slice.redis / one_get.redis,
            Figure::Redis => slice.redis,
        }
    }
}

/// Prints all tables.
pub fn print(all: &[Series]) {
    print_costs(all);
    print_ratios(all);
    print_work(all);
    print_comparison(all);
    print_goals(all);
}

fn quartiles(series: &Series, figure: fn(&Slice) -> f64) -> Quartiles {
    Quartiles::of(series.slices.iter().map(figure))
}

/// Returns the ratios to the slices of another row in the same rounds. None: that row did not run.
fn ratios(
    all: &[Series],
    series: &Series,
    reference: &str,
    figure: impl Fn(&Slice, &Slice) -> f64,
) -> Option<Quartiles> {
    let reference = all.iter().find(|other| other.title == reference)?;
    let pairs = series.slices.iter().zip(&reference.slices);
    Some(Quartiles::of(pairs.map(|(slice, reference)| figure(slice, reference))))
}

fn cell(quartiles: Option<Quartiles>) -> String {
    quartiles.map_or_else(|| "–".to_owned(), |quartiles| format!("{quartiles:.3}"))
}

fn print_costs(all: &[Series]) {
    let line = |series: &Series| {
        let redis = series.has_redis.then(|| quartiles(series, |slice| slice.redis));
        vec![
            series.title.clone(),
            cell(Some(quartiles(series, |slice| slice.rate))),
            cell(Some(quartiles(series, |slice| slice.server))),
            cell(redis),
            cell(Some(quartiles(series, |slice| slice.generator))),
            format!("{:.2}", quartiles(series, Slice::cores).median),
        ]
    };
    let head =
        ["CPU in µs per call", "calls per second", "server CPU", "Redis CPU", "load generator CPU", "cores in use"];
    print_table(&head, &all.iter().map(line).collect::<Vec<_>>());
}

fn print_ratios(all: &[Series]) {
    let line = |series: &Series| {
        let [constant, one_get] = &series.references;
        let to_one_get = |figure: Figure| {
            let needs_redis = matches!(figure, Figure::RedisToGet);
            let ratios = ratios(all, series, one_get, |slice, reference| figure.of(slice, reference));
            cell(ratios.filter(|_| series.has_redis || !needs_redis))
        };
        vec![
            series.title.clone(),
            cell(ratios(all, series, constant, |slice, reference| slice.rate / reference.rate)),
            to_one_get(Figure::Rate),
            cell(ratios(all, series, one_get, |slice, reference| slice.server / reference.server)),
            to_one_get(Figure::RedisToGet),
            to_one_get(Figure::Cpu),
        ]
    };
    let head = [
        "ratios within a round",
        "calls per second to (a)",
        Figure::Rate.title(),
        "server CPU to (b)",
        Figure::RedisToGet.title(),
        Figure::Cpu.title(),
    ];
    print_table(&head, &all.iter().map(line).collect::<Vec<_>>());
}

fn print_work(all: &[Series]) {
    let line = |series: &Series| {
        let median = |figure, digits| format!("{:.digits$}", quartiles(series, figure).median);
        vec![
            series.title.clone(),
            median(|slice| slice.commands, 2),
            median(|slice| slice.received, 0),
            median(|slice| slice.sent, 0),
            median(|slice| slice.redis_main_thread, 1),
        ]
    };
    let head = ["Redis, medians per call", "commands", "bytes received", "bytes sent", "CPU of the main thread, µs"];
    print_table(&head, &all.iter().filter(|series| series.has_redis).map(line).collect::<Vec<_>>());
}

fn print_comparison(all: &[Series]) {
    let line = |series: &Series| {
        let before = [BEFORE, &series.title].concat();
        let to_before = |figure: fn(&Slice) -> f64| {
            ratios(all, series, &before, |slice, before| figure(slice) / figure(before))
                .map(|ratios| cell(Some(ratios)))
        };
        let figures = [to_before(|slice| slice.rate), to_before(|slice| slice.server), to_before(|slice| slice.redis)];
        [Some(series.title.clone())].into_iter().chain(figures).collect()
    };
    let lines: Vec<Vec<String>> = all.iter().filter_map(line).collect();
    if !lines.is_empty() {
        print_table(&["ratios to before", "calls per second", "server CPU", "Redis CPU"], &lines);
    }
}

fn print_goals(all: &[Series]) {
    let line = |(title, figure, goal): &(&str, Figure, Goal)| {
        let series = all.iter().find(|series| series.title == *title)?;
        let quartiles = ratios(all, series, &series.references[1], |slice, reference| figure.of(slice, reference))?;
        let [goal, met] = goal.judge(&quartiles);
        let least = series.slices.iter().map(|slice| slice.redis).fold(f64::INFINITY, f64::min);
        let least = if matches!(figure, Figure::Redis) { format!("{least:.1}") } else { String::new() };
        let figures = [figure.title().to_owned(), format!("{quartiles:.3}"), least, goal, met];
        Some([(*title).to_owned()].into_iter().chain(figures).collect())
    };
    let lines: Vec<Vec<String>> = GOALS.iter().filter_map(line).collect();
    print_table(&["goals", "figure", "measured", "least", "goal", "met"], &lines);
}
