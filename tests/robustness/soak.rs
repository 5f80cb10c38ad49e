//! The soak: quick faults one after the other on the same servers, and the checks of its samples and of its report.

use std::{path::Path, time::Duration};

use robustness::{
    campaign::first_seed,
    is_selected,
    page::with_section,
    soak::{Sample, Samples, Soak, fault_names},
};

/// Faults of the short soak: one of each kind that takes little time.
const QUICK: [&str; 3] = ["log key deleted", "instance drained", "forged messages"];

#[test]
fn soak_of_quick_faults_loses_nothing_and_stays_flat() {
    let seed = first_seed();
    println!("seed: {seed}");
    let failed_histories = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    let selection = QUICK.map(str::to_owned).to_vec();
    let report = Soak { seed, duration: Duration::ZERO, selection, once: true, failed_histories }.play();
    println!("{}", report.text());
    assert_eq!(report.segments(), QUICK.len());
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

/// Returns samples of one start with the memory that `memory` returns for each number.
fn samples(count: u64, memory: impl Fn(u64) -> u64) -> Samples {
    let sample = |number| Sample {
        starts: 1,
        anonymous: memory(number),
        resident: memory(number),
        descriptors: 40,
        threads: 5,
        tasks: 60,
        connections: 0,
        watches: 0,
    };
    Samples((0..count).map(sample).collect())
}

#[test]
fn samples_with_noise_and_a_warm_up_are_flat() {
    // The memory doubles during the first third, then changes by 20 %, and by 80 % in every fourth sample.
    let noise =
        |number: u64| 50_000 + 50_000 * number.min(7) / 7 + 20_000 * (number % 2) + 60_000 * u64::from(number % 4 == 3);
    let mut flat = samples(27, noise);
    for (number, sample) in flat.0.iter_mut().enumerate().skip(1) {
        sample.descriptors += number as u64 % 3;
        sample.tasks -= number as u64 % 2;
    }
    assert_eq!(flat.problems(), Vec::<String>::new());
}

#[test]
fn samples_with_a_leak_of_5_percent_are_found() {
    for count in [24, 28, 40] {
        let leak = samples(count, |number| 100_000 + 5_000 * number);
        assert_eq!(leak.problems().len(), 1, "{count} segments: {leak:?}");
        assert!(leak.problems()[0].contains("memory"), "{:?}", leak.problems());
    }
}

/// Adds a leak to a sample; the number is that of the sample.
type Leak = fn(&mut Sample, u64);

#[test]
fn samples_with_one_leaked_resource_are_found() {
    let leaks: [(&str, Leak); 5] = [
        ("descriptors", |sample, count| sample.descriptors += count),
        ("tasks", |sample, count| sample.tasks += count),
        ("threads", |sample, count| sample.threads += count),
        ("connections", |sample, count| sample.connections += count / 10),
        ("watches", |sample, count| sample.watches += count / 10),
    ];
    for (name, leak) in leaks {
        let mut leaking = samples(15, |_| 100_000);
        (0..).zip(&mut leaking.0).for_each(|(number, sample)| leak(sample, number));
        let problems = leaking.problems();
        assert!(problems.len() == 1 && problems[0].contains(name), "{name}: {problems:?}");
        let last = leaking.0.pop().unwrap();
        assert!(leaking.exceeded_by(&last).is_some_and(|problem| problem.contains(name)), "{name}");
    }
}

#[test]
fn samples_of_a_restarted_process_begin_again() {
    let mut restarted = samples(20, |_| 100_000);
    for sample in &mut restarted.0[10..] {
        (sample.starts, sample.descriptors, sample.anonymous) = (2, 60, 200_000);
    }
    assert_eq!(restarted.problems(), Vec::<String>::new());
    assert_eq!(restarted.of_last_start().len(), 10);
    restarted.0[19].descriptors = 80;
    assert_eq!(restarted.problems(), ["80 descriptors at rest, 60 after the first segment"]);
}

#[test]
fn fault_selection_includes_or_excludes_parts_of_names() {
    let selected = |parts: &[&str]| {
        let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
        fault_names().into_iter().filter(|name| is_selected(name, &parts)).collect::<Vec<_>>()
    };
    assert_eq!(selected(&[]), fault_names());
    assert_eq!(selected(&["sighup", "900 KB"]), ["SIGHUP to every instance", "sessions of 900 KB"]);
    let without = selected(&["-SIGHUP", "-900 kb"]);
    assert_eq!(without.len(), fault_names().len() - 2);
    assert_eq!(selected(&["right to", "-XADD"]), ["right to SET taken"]);
}

#[test]
fn page_sections_do_not_overwrite_each_other() {
    let page = "# Title\n\ntext\n\n## Soak\n\nold\n\n| old |\n\n## Histories\n\nkept\n";
    let soak = with_section(page, "## Soak", "new\n\n### Part\n\nnew\n");
    assert_eq!(soak, "# Title\n\ntext\n\n## Soak\n\nnew\n\n### Part\n\nnew\n\n## Histories\n\nkept\n");
    let both = with_section(&soak, "## Histories", "new\n");
    assert_eq!(both, "# Title\n\ntext\n\n## Soak\n\nnew\n\n### Part\n\nnew\n\n## Histories\n\nnew\n");
    assert_eq!(with_section("# Title\n", "## Soak", "new"), "# Title\n\n## Soak\n\nnew\n");
}
