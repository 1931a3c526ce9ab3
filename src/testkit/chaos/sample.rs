//! What a run would have found over a store in a map: for tests of what is made of findings.

use std::time::Duration;

use crate::testkit::chaos::fault::Kind;
use crate::testkit::chaos::gaps::Happened;
use crate::testkit::chaos::outcome::Findings;
use crate::testkit::chaos::outcome::Led;
use crate::testkit::mix;
use crate::testkit::mix::Mix;
use crate::testkit::mix::final_reads;
use crate::testkit::mix::model::Lie;
use crate::testkit::mix::model::Model;
use crate::testkit::observed::Moment;

/// What a run over a model in a map would have found, in virtual time.
pub(crate) async fn findings(lie: Lie, seed: u64) -> Findings {
    let target = Model::new(lie, seed).target();
    let options = mix::Options {
        seed,
        ..mix::Options::default()
    };
    let mix = Mix::start(&target, &options).unwrap();
    assert!(mix.wait_acknowledged(1_500, Duration::from_secs(600)).await);
    let history = mix.stop().await;
    let ended = target.moment();
    let limit = Duration::from_secs(60);
    let finals = final_reads(&target, &history, options.clients, limit).await;
    Findings {
        seed,
        nodes: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
        duration: Duration::from_micros(ended.0),
        prefix: String::new(),
        history,
        finals: finals.unwrap(),
        faults: vec![Happened {
            kind: Kind::Kill,
            what: "kill -9 n1".to_owned(),
            began: Moment(ended.0 / 4),
            ended: Moment(ended.0 / 2),
        }],
        changes: Vec::new(),
        leaders: vec![Led {
            at: Moment(0),
            shard: "s1".to_owned(),
            node: Some(0),
        }],
        healed: ended,
        ended,
        complaints: Vec::new(),
        interrupted: false,
        late: Duration::ZERO,
    }
}
