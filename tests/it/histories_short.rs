//! Lives of purchases. `bin/histories` plays thousands of them.

use crate::histories::life::Life;
use crate::histories::reference_receiver::PageStatements;
use crate::histories::{Run, play, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_of_the_page_is_right_in_every_order() {
    let tally = run(&Run {
        seed: 12,
        count: 150,
        shuffled: 3,
        worlds: 2,
    })
    .await;
    println!("{tally}");
    assert!(tally.is_clean(), "{tally}");
    // So many lives have everything that a purchase can go through.
    let missing: Vec<_> = EVERYTHING
        .iter()
        .filter(|kind| !tally.steps.contains_key(**kind))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {:?}", tally.steps);
}

/// What happens to some purchase among the lives of the test.
const EVERYTHING: [&str; 47] = [
    "AppleBuy",
    "AppleChange billing-retry",
    "AppleChange cancel",
    "AppleChange downgrade",
    "AppleChange expire",
    "AppleChange extend",
    "AppleChange grace",
    "AppleChange refund",
    "AppleChange renew",
    "AppleChange resume",
    "AppleChange reverse-refund",
    "AppleChange revoke",
    "AppleChange upgrade",
    "AppleNotify CONSUMPTION_REQUEST",
    "AppleNotify METADATA_UPDATE",
    "AppleNotify PRICE_INCREASE",
    "AppleVerify",
    "PlayBuy",
    "PlayChange acknowledge",
    "PlayChange cancel",
    "PlayChange defer",
    "PlayChange expire",
    "PlayChange grace",
    "PlayChange hold",
    "PlayChange pause",
    "PlayChange renew",
    "PlayChange restore",
    "PlayChange resume",
    "PlayChange revoke",
    "PlayDecide",
    "PlayForgetEnded",
    "PlayNotify 11",
    "PlayNotify 17",
    "PlayNotify 18",
    "PlayNotify 19",
    "PlayReplace",
    "PlayReplace deferred",
    "PlayReplace pending",
    "PlayResubscribe",
    "PlayVerify",
    "PlayVoidEarlier",
    "ProductBuy",
    "ProductChange acknowledge",
    "ProductChange complete",
    "ProductChange consume",
    "ProductChange refund",
    "Silent",
];

/// What is looked for is found: a receiver that believes the message that arrived last is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_believes_the_last_arrival_is_found_out() {
    let mut page = PageStatements::read();
    let (believing, _) = page.upsert.rsplit_once(" where ").unwrap();
    page.upsert = believing.to_owned();
    let lives: Vec<Life> = (0..12).map(Life::from_seed).collect();
    let tally = play(&lives, &page, 3).await;
    assert!(!tally.wrong.is_empty(), "{tally}");
}
