//! The demo's course: set up, produce, kill and restart in the middle, collect what comes out.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millstream::{Client, Consumer, Delivery, Message, Record, StartAt, TopicName};
use millstream_proto::pipeline::PipelineState;
use quake_regions::Region;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::check::{Evidence, Seen};
use super::expect::{Expected, PARTITIONS};
use super::screen::{Counts, Screen};
use super::setup::{self, Names};
use crate::child::{Broker, ChildError, Place};
use crate::clock;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::Output;
use crate::quantity::show_bytes;
use crate::view::behind;

/// Events that wait for the screen; whoever has more waits.
const EVENTS: usize = 1024;
/// Deliveries that wait for their acknowledgement; the whole file fits.
const DELIVERIES: usize = 2048;
/// How often the screen is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How often the pipeline is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Records that are produced while the broker is being killed, before anybody waits for that.
const UNDER_FIRE: usize = 100;
/// With nothing happening for so long it is over, and the check tells what is missing. Longer
/// than the clients take to find a restarted broker.
const STALLED: Duration = Duration::from_secs(45);

/// What a run of the demo is made of.
pub(super) struct Plan {
    pub(super) out: Output,
    pub(super) expected: Arc<Expected>,
    pub(super) place: Place,
    /// How long producing takes.
    pub(super) pace: Duration,
    /// How long the broker stays dead.
    pub(super) death: Duration,
    /// The broker, while there is one. Here, so that it can be waited for however it all ends.
    pub(super) broker: Mutex<Option<Broker>>,
}

impl Plan {
    fn put(&self, broker: Broker) {
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = Some(broker);
    }

    fn take(&self) -> Option<Broker> {
        self.broker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Kills the broker, if there is one, and waits for its end.
    pub(super) async fn end(&self) -> Outcome {
        match self.take() {
            Some(broker) => broker.kill().await.map(drop).map_err(CliError::failure),
            None => Ok(()),
        }
    }
}

/// What happens while it goes.
enum Event {
    Sent,
    Acked,
    Quake(Seen),
    Strong(Seen),
    Alert(Seen),
    Died(u32),
    Failed(CliError),
}

impl From<ChildError> for CliError {
    fn from(error: ChildError) -> Self {
        CliError::failure(error)
    }
}

/// Runs it all, and returns what came out.
pub(super) async fn perform(plan: &Plan) -> Outcome<Evidence> {
    let Plan { out, place, .. } = plan;
    let names = Names::new().map_err(CliError::failure)?;
    setup::certificates(&place.pki)?;
    out.note("certificates  an authority, a broker's, an administrator's and a client's");
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let broker = Broker::start(place, anywhere).await?;
    let pid = broker.id().unwrap_or_default();
    out.note(&format!(
        "broker        process {pid} on {} (QUIC, mutual TLS 1.3)",
        broker.addr()
    ));
    let addr = broker.addr();
    plan.put(broker);
    let client = setup::client(&place.pki, addr).await?;
    set_up(*out, &client, &names).await?;
    let mut show = Show::begin(plan, &client, &names).await?;
    show.run(plan).await?;
    wait_for_pipeline(&client, &names).await?;
    let mut evidence = show.end();
    evidence.stored = read(&client, &names.quakes).await?;
    evidence.alerts = read(&client, &names.alerts).await?;
    evidence.log = read(&client, &names.log).await?;
    link::leave(&client).await;
    Ok(evidence)
}

async fn set_up(out: Output, client: &Client, names: &Names) -> Outcome {
    let Names {
        quakes,
        alerts,
        log,
        ..
    } = names;
    setup::topics(client, names).await?;
    out.note(&format!(
        "topics        {quakes} ({PARTITIONS} partitions), {alerts}, {log}"
    ));
    let started = clock::monotonic();
    let bytes = setup::plugins(client).await?;
    let took = started.elapsed().as_secs_f64();
    let size = show_bytes(bytes as u64);
    out.note(&format!(
        "plugins       4 uploaded and compiled, {size} in {took:.2} s"
    ));
    setup::chain(client, names).await?;
    out.note(&format!(
        "routing       route-by-region chooses the partition in {quakes}"
    ));
    out.note(&format!(
        "pipeline      {quakes} -> filter-json, redact, split-alerts -> {alerts}, {log}"
    ));
    Ok(())
}

/// The part that moves.
struct Show {
    events: mpsc::Receiver<Event>,
    half: Option<oneshot::Receiver<()>>,
    died: Option<oneshot::Sender<()>>,
    teller: mpsc::Sender<Event>,
    screen: Screen,
    counts: Counts,
    evidence: Evidence,
    regions: HashMap<Bytes, Region>,
}

impl Show {
    /// Starts the consumers, then the producer.
    async fn begin(plan: &Plan, client: &Client, names: &Names) -> Outcome<Self> {
        let (teller, events) = mpsc::channel(EVENTS);
        let live = |topic: &TopicName| client.consumer(topic.clone()).start(StartAt::Earliest);
        let quakes = live(&names.quakes).build().await?;
        let alerts = live(&names.alerts).build().await?;
        let strong = live(&names.quakes).plugin(setup::strong()?).build().await?;
        for (consumer, event) in [
            (quakes, Event::Quake as fn(Seen) -> Event),
            (alerts, Event::Alert),
            (strong, Event::Strong),
        ] {
            tokio::spawn(watch(consumer, event, teller.clone()));
        }
        let (tell_half, half) = oneshot::channel();
        let (died, hear_death) = oneshot::channel();
        let producing = Producing {
            client: client.clone(),
            topic: names.quakes.clone(),
            expected: Arc::clone(&plan.expected),
            pace: plan.pace,
            half: Some(tell_half),
            death: Some(hear_death),
            teller: teller.clone(),
        };
        let failing = teller.clone();
        tokio::spawn(async move {
            if let Err(error) = producing.run().await {
                tell(&failing, Event::Failed(error)).await;
            }
        });
        let quakes = &plan.expected.quakes;
        let total = quakes.len() as u64;
        let counts = Counts::new(total);
        Ok(Self {
            events,
            half: Some(half),
            died: Some(died),
            teller,
            screen: Screen::new(plan.out, total),
            counts,
            evidence: Evidence::default(),
            regions: quakes
                .iter()
                .map(|quake| (quake.id.clone(), quake.region))
                .collect(),
        })
    }

    /// Goes on until everything has come out, or nothing comes any more.
    async fn run(&mut self, plan: &Plan) -> Outcome {
        let (half, died) = (self.half.take(), self.died.take());
        let killing = kill_midway(plan, half, died, self.teller.clone());
        tokio::pin!(killing);
        let mut restarted = false;
        let mut draw = interval(DRAW_EVERY);
        draw.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => {
                    heard = Instant::now();
                    self.take(event)?;
                }
                again = &mut killing, if !restarted => {
                    again?;
                    self.counts.broker = "serving again, same data".to_owned();
                    self.screen.say("broker        restarted on the same data; everybody reconnects");
                    heard = Instant::now();
                    restarted = true;
                }
                _ = draw.tick() => self.screen.show(&mut self.counts),
            }
            let over = self.is_complete(&plan.expected) || heard.elapsed() > STALLED;
            if restarted && over {
                return Ok(());
            }
        }
    }

    fn is_complete(&self, expected: &Expected) -> bool {
        let strong = expected
            .quakes
            .iter()
            .filter(|quake| quake.is_strong())
            .count();
        let Evidence {
            live,
            live_alerts,
            strong: passed,
            ..
        } = &self.evidence;
        self.counts.acked == self.counts.total
            && live.len() >= expected.quakes.len()
            && live_alerts.len() >= expected.alerts.len()
            && passed.len() >= strong
    }

    fn take(&mut self, event: Event) -> Outcome {
        match event {
            Event::Sent => self.counts.sent += 1,
            Event::Acked => self.counts.acked += 1,
            Event::Quake(seen) => {
                let region = seen.key.as_ref().and_then(|key| self.regions.get(key));
                if let Some(region) = region {
                    self.counts.see(seen.partition, *region);
                }
                self.evidence.live.push(seen);
            }
            Event::Strong(seen) => {
                self.counts.strong += 1;
                self.evidence.strong.push(seen);
            }
            Event::Alert(seen) => {
                self.counts.alerts += 1;
                self.screen.say(&alert_line(&seen));
                self.evidence.live_alerts.push(seen);
            }
            Event::Died(pid) => {
                self.counts.broker = "DEAD".to_owned();
                let Counts { sent, acked, .. } = self.counts;
                self.screen.say(&format!(
                    "broker        process {pid} killed with SIGKILL; {acked} of {sent} records acknowledged"
                ));
            }
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes in what has come meanwhile, and gives out the evidence.
    fn end(mut self) -> Evidence {
        while let Ok(event) = self.events.try_recv() {
            // An error of a consumer that is no longer needed shows as a missing record, if it is one.
            let _ = self.take(event);
        }
        self.screen.finish(&self.counts);
        self.evidence
    }
}

fn alert_line(seen: &Seen) -> String {
    let value = seen.value.as_deref().unwrap_or_default();
    let alert: Value = serde_json::from_slice(value).unwrap_or_default();
    let (severity, place) = (alert["severity"].as_str(), alert["place"].as_str());
    format!(
        "alert         {:<8} M {}  {}",
        severity.unwrap_or("?"),
        alert["mag"],
        place.unwrap_or("?")
    )
}

async fn tell(teller: &mpsc::Sender<Event>, event: Event) {
    // Nobody listens when the demo is over.
    let _ = teller.send(event).await;
}

fn seen(message: Message) -> Seen {
    let Message {
        partition,
        offset,
        key,
        value,
        ..
    } = message;
    Seen {
        partition: partition.get(),
        offset: offset.get(),
        key,
        value,
    }
}

/// A consumer that reports all it gets, for as long as the demo lasts.
async fn watch(mut consumer: Consumer, event: fn(Seen) -> Event, teller: mpsc::Sender<Event>) {
    while let Some(message) = consumer.next_message().await {
        let event = match message {
            Ok(message) => event(seen(message)),
            Err(error) => Event::Failed(error.into()),
        };
        tell(&teller, event).await;
    }
}

/// Reads a topic from beginning to end.
async fn read(client: &Client, topic: &TopicName) -> Outcome<Vec<Seen>> {
    let mut consumer = client
        .consumer(topic.clone())
        .start(StartAt::Earliest)
        .until_end(true)
        .build()
        .await?;
    let mut all = Vec::new();
    while let Some(message) = consumer.next_message().await {
        all.push(seen(message?));
    }
    Ok(all)
}

/// Kills the broker when half is sent, and starts it again on the same data.
async fn kill_midway(
    plan: &Plan,
    half: Option<oneshot::Receiver<()>>,
    died: Option<oneshot::Sender<()>>,
    teller: mpsc::Sender<Event>,
) -> Outcome {
    if let Some(half) = half {
        half.await
            .map_err(|_| CliError::failure("the producer ended before half was sent"))?;
    }
    let Some(broker) = plan.take() else {
        return Err(CliError::failure("there is no broker to kill"));
    };
    let (addr, pid) = (broker.addr(), broker.id().unwrap_or_default());
    let killed = |e: io::Error| CliError::failure(format!("cannot kill the broker: {e}"));
    broker.kill().await.map_err(killed)?;
    tell(&teller, Event::Died(pid)).await;
    // A producer that has failed is not waiting; its error comes as an event.
    let _ = died.map(|died| died.send(()));
    sleep(plan.death).await;
    plan.put(Broker::start(&plan.place, addr).await?);
    Ok(())
}

struct Producing {
    client: Client,
    topic: TopicName,
    expected: Arc<Expected>,
    pace: Duration,
    half: Option<oneshot::Sender<()>>,
    death: Option<oneshot::Receiver<()>>,
    teller: mpsc::Sender<Event>,
}

impl Producing {
    /// Produces every line at its moment, whatever happens to the broker meanwhile.
    async fn run(mut self) -> Outcome {
        let producer = self.client.producer(self.topic.clone()).build().await?;
        let (handed, deliveries) = mpsc::channel(DELIVERIES);
        let acks = tokio::spawn(acknowledge(deliveries, self.teller.clone()));
        let quakes = &self.expected.quakes;
        let started = Instant::now();
        for (i, quake) in quakes.iter().enumerate() {
            sleep_until(started + self.pace.mul_f64(i as f64 / quakes.len() as f64)).await;
            if i == quakes.len() / 2 {
                // Whoever kills has gone only when the demo is over.
                let _ = self.half.take().map(|half| half.send(()));
            }
            if i == quakes.len() / 2 + UNDER_FIRE
                && let Some(death) = self.death.take()
            {
                // The second half must meet a dead broker, however fast the first one went.
                let _ = death.await;
            }
            let record = Record::value(&quake.line)
                .key(&quake.id)
                .timestamp(quake.time);
            let delivery = producer.send(&record).await?;
            tell(&self.teller, Event::Sent).await;
            if handed.send(delivery).await.is_err() {
                break;
            }
        }
        drop(handed);
        acks.await.map_err(CliError::failure)?;
        Ok(producer.close().await?)
    }
}

/// Reports each acknowledgement, in the order of the records.
async fn acknowledge(mut deliveries: mpsc::Receiver<Delivery>, teller: mpsc::Sender<Event>) {
    while let Some(delivery) = deliveries.recv().await {
        let event = match delivery.await {
            Ok(_) => Event::Acked,
            Err(error) => Event::Failed(error.into()),
        };
        tell(&teller, event).await;
    }
}

/// Waits until the pipeline has read all there is; what it wrote is committed then.
async fn wait_for_pipeline(client: &Client, names: &Names) -> Outcome {
    let started = Instant::now();
    loop {
        let info = client.show_pipeline(names.pipeline.clone()).await?;
        if let PipelineState::Failed(why) = &info.state {
            return Err(CliError::failure(format!("the pipeline has failed: {why}")));
        }
        // A pipeline that never gets there is not waited for: the check tells what is missing.
        if behind(&info) == 0 || started.elapsed() > STALLED {
            return Ok(());
        }
        sleep(ASK_EVERY).await;
    }
}
