//! Many measurements of one thing, and the few numbers that stand for them.

use std::time::Duration;

/// Durations of one thing, in the order they were measured.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Half of them took longer; zero when there are none.
    pub fn median(&self) -> Duration {
        self.part(50)
    }

    /// One in ten took longer; zero when there are none.
    pub fn p90(&self) -> Duration {
        self.part(90)
    }

    /// One in a hundred took longer; zero when there are none.
    pub fn p99(&self) -> Duration {
        self.part(99)
    }

    /// None took longer; zero when there are none.
    pub fn longest(&self) -> Duration {
        self.part(100)
    }

    fn part(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last * percent).div_ceil(100)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_do_not_depend_on_the_order() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), Duration::ZERO);
        for ms in [100, 3, 1, 2, 5, 4, 7, 6, 9, 8, 10] {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!(samples.len(), 11);
        assert_eq!(samples.median(), Duration::from_millis(6));
        assert_eq!(samples.p90(), Duration::from_millis(10));
        assert_eq!(
            (samples.p99(), samples.longest()),
            (Duration::from_millis(100), Duration::from_millis(100))
        );
    }
}
