//! Help with names that are not there.

/// What follows "there is no …": the names that look most like `wrong`, or a few there are.
pub fn help(wrong: &str, all: &[String]) -> String {
    let distance =
        |name: &String| strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase());
    let near = all.iter().map(|name| (distance(name), name));
    let best = near.min_by_key(|(distance, _)| *distance);
    match best {
        Some((distance, name)) if distance <= wrong.chars().count().max(3) / 3 => {
            format!("; did you mean `{name}`?")
        }
        Some(_) => {
            let few: Vec<_> = all.iter().take(8).map(|name| format!("`{name}`")).collect();
            let more = if all.len() > few.len() { ", …" } else { "" };
            format!("; there are {}{more}", few.join(", "))
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_or_a_few() {
        let all = ["alpha", "beta"].map(str::to_owned);
        assert_eq!(help("Alhpa", &all), "; did you mean `alpha`?");
        assert_eq!(help("omega9", &all), "; there are `alpha`, `beta`");
        assert_eq!(help("x", &[]), "");
        let many: Vec<String> = (0..9).map(|n| format!("link-{n}{n}{n}")).collect();
        assert!(help("q", &many).ends_with("`link-777`, …"));
    }
}
