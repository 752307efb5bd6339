//! What a run of the demo found out, for people and for scripts.

use std::fmt::Write;

use crate::demo::network::ParamsHash;

/// The outcome of one run. All times are milliseconds since the kill, `None` when nobody was killed or the point was
/// never reached.
#[derive(Clone, PartialEq, Debug)]
pub struct Summary {
    /// Part of the held-out images read correctly, in `[0, 1]`.
    pub accuracy: f64,
    /// The parameters after the last step.
    pub params_hash: ParamsHash,
    /// The parameters of the same training without a failure.
    pub baseline_hash: ParamsHash,
    /// Errors that a surviving rank's training loop has seen.
    pub survivor_errors: u32,
    /// Whether the kill hit an all-reduce in flight.
    pub kill_in_flight: bool,
    /// The op that was in flight was complete at every rank, the newcomer included.
    pub stall_ms: Option<f64>,
    /// A survivor knew.
    pub detect_ms: Option<f64>,
    /// The spare had the seat.
    pub reseat_ms: Option<f64>,
    /// The spare had the training state.
    pub state_ms: Option<f64>,
    /// The spare had repeated the step.
    pub replay_ms: Option<f64>,
    /// Steps of the run.
    pub steps: u64,
}

impl Summary {
    /// Whether the failure left no trace in the parameters.
    #[must_use]
    pub fn bitwise_equal(&self) -> bool {
        self.params_hash == self.baseline_hash
    }

    /// One line of JSON (RFC 8259): hashes as strings, times and counts as numbers. A time that is not known, and a
    /// number that JSON cannot spell (NaN, infinity), is `null`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let fields = [
            ("accuracy", number(Some(self.accuracy))),
            ("params_hash", format!("\"{}\"", self.params_hash)),
            ("baseline_hash", format!("\"{}\"", self.baseline_hash)),
            ("bitwise_equal", self.bitwise_equal().to_string()),
            ("survivor_errors", self.survivor_errors.to_string()),
            ("kill_in_flight", self.kill_in_flight.to_string()),
            ("stall_ms", number(self.stall_ms)),
            ("detect_ms", number(self.detect_ms)),
            ("reseat_ms", number(self.reseat_ms)),
            ("state_ms", number(self.state_ms)),
            ("replay_ms", number(self.replay_ms)),
            ("steps", self.steps.to_string()),
        ];
        let mut json = String::from("{");
        for (place, (name, value)) in fields.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            // Writing to a `String` cannot fail.
            let _ = write!(json, "{comma}\"{name}\": {value}");
        }
        json.push('}');
        json
    }
}

/// `Display` of a finite f64 has no exponent and no sign but `-`, which is JSON's grammar too.
fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or_else(|| "null".to_owned(), |value| value.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Summary {
        Summary {
            accuracy: 0.9637883008356546,
            params_hash: ParamsHash(0x00c0_ffee),
            baseline_hash: ParamsHash(0x00c0_ffee),
            survivor_errors: 0,
            kill_in_flight: true,
            stall_ms: Some(81.25),
            detect_ms: Some(0.75),
            reseat_ms: Some(20.0),
            state_ms: Some(31.5),
            replay_ms: Some(80.0),
            steps: 300,
        }
    }

    #[test]
    fn json_is_exactly_this() {
        let json = "{\"accuracy\": 0.9637883008356546, \"params_hash\": \"0000000000c0ffee\", \
                    \"baseline_hash\": \"0000000000c0ffee\", \"bitwise_equal\": true, \"survivor_errors\": 0, \
                    \"kill_in_flight\": true, \"stall_ms\": 81.25, \"detect_ms\": 0.75, \"reseat_ms\": 20, \
                    \"state_ms\": 31.5, \"replay_ms\": 80, \"steps\": 300}";
        assert_eq!(example().to_json(), json);
    }

    #[test]
    fn unknown_is_null_and_different_is_false() {
        let summary = Summary {
            accuracy: f64::NAN,
            baseline_hash: ParamsHash(1),
            stall_ms: None,
            detect_ms: Some(f64::INFINITY),
            reseat_ms: Some(1e-7),
            state_ms: Some(1e21),
            ..example()
        };
        let json = summary.to_json();
        for part in [
            "\"accuracy\": null",
            "\"bitwise_equal\": false",
            "\"stall_ms\": null",
            "\"detect_ms\": null",
            "\"reseat_ms\": 0.0000001,",
            "\"state_ms\": 1000000000000000000000,",
        ] {
            assert!(json.contains(part), "{part} is not in {json}");
        }
    }
}
