//! How many threads a job gets.

use std::time::Duration;

/// Where other programs hold the cores, threads that meet five times a layer wait for each other: two of them took 15 to 600
/// times as long as one (16 programs on two cores). So where more than half of their time is lost in waiting, half as many go
/// on, and twice as many are tried again after a while, which doubles each time it was in vain.
pub struct Pace {
    /// Of the next job.
    pub threads: usize,
    pub most: usize,
    /// Time of jobs, and what all threads lost of it, since the number of threads was last judged.
    spent: Duration,
    lost: Duration,
    rest: Duration,
}

/// Of jobs, before the number of threads is judged: several of the operating system's slices.
const JUDGED: Duration = Duration::from_millis(20);
/// Of jobs with fewer threads, before more are tried.
const RESTS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

impl Pace {
    /// All of a team's `most` threads at first.
    pub fn new(most: usize) -> Pace {
        Pace { threads: most, most, spent: Duration::ZERO, lost: Duration::ZERO, rest: RESTS.0 }
    }

    /// Takes note of a job: its time, and what all its threads together lost.
    pub fn note(&mut self, spent: Duration, lost: Duration) {
        (self.spent, self.lost) = (self.spent + spent, self.lost + lost);
        if self.spent < JUDGED {
            return;
        }
        let threads = if self.lost > self.spent * self.threads as u32 / 2 {
            self.rest = (self.rest * 2).min(RESTS.1);
            self.threads.div_ceil(2)
        } else if self.threads == self.most {
            self.rest = RESTS.0;
            self.most
        } else if self.spent > self.rest {
            (2 * self.threads).min(self.most)
        } else {
            return;
        };
        *self = Pace { threads, rest: self.rest, ..Pace::new(self.most) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_threads_go_on_while_most_of_their_time_is_lost_and_more_are_tried_ever_less_often() {
        let ms = Duration::from_millis;
        let (mut pace, mut tried) = (Pace::new(4), Vec::new());
        for job in 0..2000 {
            let before = pace.threads;
            pace.note(ms(10), ms(if before > 1 { 10 * before as u64 * 6 / 10 } else { 0 }));
            if pace.threads > before {
                tried.push(10 * job);
            }
        }
        let rests: Vec<i64> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(tried.len() >= 5 && rests.windows(2).all(|pair| pair[0] <= pair[1]), "{tried:?}");
        assert!(*rests.last().expect("some") < 4100, "{tried:?}");
        for _ in 0..1000 {
            pace.note(ms(10), ms(10 * pace.threads as u64 * 4 / 10));
        }
        assert_eq!((pace.threads, pace.rest), (4, RESTS.0));
    }
}
