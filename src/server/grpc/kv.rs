//! `Kv`: get, put, scan and their kind.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use crate::error::Error;
use crate::error::Result;
use crate::server::grpc::door::DEADLINE_DEFAULT;
use crate::server::grpc::door::Door;
use crate::server::grpc::door::Entered;
use crate::server::grpc::door::OVERLOADED_RETRY;
use crate::server::grpc::door::unexpected;
use crate::types::ClusterId;
use crate::types::Key;
use crate::types::RequestId;
use crate::types::keyspace::KeyspaceName;
use crate::types::request::Answered;
use crate::types::request::Write;
use crate::wire::convert::kv;
use crate::wire::convert::kv::Done;
use crate::wire::convert::kv::Meant;
use crate::wire::convert::kv::WholeScan;
use crate::wire::convert::kv::Written;
use crate::wire::proto::v1;
use crate::wire::proto::v1::kv_server::Kv;
use crate::wire::request::KeyRequest;
use crate::wire::request::Page;
use crate::wire::request::Request as NodeRequest;
use crate::wire::request::Response as NodeResponse;
use crate::wire::status::to_status;

/// Keys of one portion of a scan: few enough that others get their turn.
pub const PAGE_KEYS_MAX: u32 = 1_000;
/// Bytes of keys and values of one portion of a scan.
pub const PAGE_BYTES_MAX: u32 = 256 * 1024;

/// Answers `Kv`.
pub struct KvDoor {
    door: Arc<Door>,
    scans: Arc<Semaphore>,
}

impl KvDoor {
    /// Behind this door; `scans` has a place for each that may be open.
    pub fn new(door: Arc<Door>, scans: Arc<Semaphore>) -> KvDoor {
        KvDoor { door, scans }
    }

    async fn write(
        &self,
        entered: Entered,
        id: RequestId,
        (place, checked): (Result<Place>, Result<Meant<Write>>),
    ) -> Result<(Written, Answered), Status> {
        let outcome = async {
            let Place { keyspace, resume } = place?;
            let (write, cluster) = checked?;
            let request = KeyRequest::Write(write).of(keyspace, resume);
            match self.door.ask_as_client(entered, request, cluster).await? {
                NodeResponse::Write(outcome, answered) => {
                    Ok((kv::written(outcome, id, &answered)?, answered))
                }
                other => Err(unexpected(&other)),
            }
        };
        outcome.await.map_err(|error| to_status(&error, Some(id)))
    }

    async fn write_unconditionally(
        &self,
        entered: Entered,
        id: RequestId,
        checked: (Result<Place>, Result<Meant<Write>>),
    ) -> Result<(Done, Answered), Status> {
        match self.write(entered, id, checked).await? {
            (Written::Done(done), answered) => Ok((done, answered)),
            (Written::ConditionFailed { .. }, _) => {
                let error = "a condition failed that was not set".to_owned();
                Err(to_status(&Error::Internal(error), Some(id)))
            }
        }
    }

    async fn read<T>(
        &self,
        entered: Entered,
        checked: Result<Meant<T>>,
        request: impl FnOnce(T) -> NodeRequest,
    ) -> Result<NodeResponse, Status> {
        let (read, cluster) = checked.map_err(refused)?;
        let response = self
            .door
            .ask_as_client(entered, request(read), cluster)
            .await;
        response.map_err(refused)
    }
}

#[async_trait]
impl Kv for KvDoor {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let keyspace = kv::keyspace_of(&request.get_ref().keyspace).map_err(refused)?;
        let checked = kv::get_of(request.into_inner());
        let asked = |get| KeyRequest::Get(get).of(keyspace, None);
        match self.read(entered, checked, asked).await? {
            NodeResponse::Get(found, answered) => Ok(Response::new(kv::got_out(found, answered))),
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let keyspace = kv::keyspace_of(&request.get_ref().keyspace).map_err(refused)?;
        let checked = kv::batch_get_of(request.into_inner());
        let asked = |get| KeyRequest::BatchGet(get).of(keyspace, None);
        match self.read(entered, checked, asked).await? {
            NodeResponse::BatchGet(found, answered) => {
                let response = kv::batch_got_out(found, answered);
                Ok(Response::new(response.map_err(refused)?))
            }
            other => Err(refused(unexpected(&other))),
        }
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let request = request.into_inner();
        let id = self.door.request_id(&request.request_id)?;
        let checked = (place(&request.keyspace), kv::put_of(request, id));
        let (done, answered) = self.write_unconditionally(entered, id, checked).await?;
        Ok(Response::new(kv::put_done_out(done, answered, id)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let request = request.into_inner();
        let id = self.door.request_id(&request.request_id)?;
        let checked = (place(&request.keyspace), kv::delete_of(request, id));
        let (done, answered) = self.write_unconditionally(entered, id, checked).await?;
        Ok(Response::new(kv::delete_done_out(done, answered, id)))
    }

    async fn delete_range(
        &self,
        request: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let request = request.into_inner();
        let id = self.door.request_id(&request.request_id)?;
        // Without a keyspace the range begins at the resume key already.
        let place = match request.keyspace.is_empty() {
            true => Ok(Place::default()),
            false => Place::of(&request.keyspace, &request.resume_key),
        };
        let checked = (place, kv::delete_range_of(request, id));
        let (done, answered) = self.write_unconditionally(entered, id, checked).await?;
        Ok(Response::new(kv::range_done_out(done, answered, id)))
    }

    async fn write(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let request = request.into_inner();
        let id = self.door.request_id(&request.request_id)?;
        let checked = (place(&request.keyspace), kv::write_of(request, id));
        let (written, answered) = KvDoor::write(self, entered, id, checked).await?;
        Ok(Response::new(kv::written_out(written, answered, id)))
    }

    type ScanStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let entered = self.door.enter(request.metadata())?;
        let place = Place::of(&request.get_ref().keyspace, &request.get_ref().resume_key);
        let place = place.map_err(refused)?;
        let (whole, cluster) = kv::scan_of(request.into_inner()).map_err(refused)?;
        let Ok(open) = self.scans.clone().try_acquire_owned() else {
            return Err(refused(Error::Overloaded {
                queue: "scans open".to_owned(),
                retry_after: OVERLOADED_RETRY,
            }));
        };
        let pages = Pages {
            door: self.door.clone(),
            entered,
            ends: entered
                .deadline
                .and_then(|deadline| Instant::now().checked_add(deadline)),
            cluster,
            place,
            left: Some(whole),
            _open: open,
        };
        Ok(Response::new(stream::unfold(pages, Pages::next).boxed()))
    }
}

/// In which keyspace a request is, and where it goes on there.
#[derive(Debug, Clone, Default)]
struct Place {
    keyspace: Option<KeyspaceName>,
    resume: Option<Key>,
}

impl Place {
    fn of(keyspace: &str, resume: &Key) -> Result<Place> {
        let place = Place {
            keyspace: kv::keyspace_of(keyspace)?,
            resume: kv::resume_of(resume)?,
        };
        match place.keyspace.is_none() && place.resume.is_some() {
            true => Err(Error::invalid(
                "resume_key",
                "only a scan of a hash keyspace goes on there",
            )),
            false => Ok(place),
        }
    }
}

/// A scan under way. The next portion is read when the network has room for it.
struct Pages {
    door: Arc<Door>,
    entered: Entered,
    ends: Option<Instant>,
    cluster: Option<ClusterId>,
    place: Place,
    /// What is still to be read; `None` when all is, or after an error.
    left: Option<WholeScan>,
    _open: OwnedSemaphorePermit,
}

impl Pages {
    async fn next(mut self) -> Option<(Result<v1::ScanResponse, Status>, Pages)> {
        // Portions in which nothing was found are not worth a message, unless they are the last.
        loop {
            let whole = self.left.take()?;
            let page = match self.read(&whole).await {
                Ok(page) => page,
                Err(error) => return Some((Err(refused(error)), self)),
            };
            self.left = rest_of(whole, &page);
            self.place.resume = page.unordered.as_ref().and_then(|it| it.resume.clone());
            if self.left.is_none() || !page.items.is_empty() {
                return Some((Ok(kv::page_out(page)), self));
            }
        }
    }

    async fn read(&self, whole: &WholeScan) -> Result<Page> {
        let mut scan = whole.scan.clone();
        scan.keys_max = scan.keys_max.min(PAGE_KEYS_MAX);
        scan.bytes_max = scan.bytes_max.min(PAGE_BYTES_MAX);
        let mut entered = self.entered;
        entered.deadline = Some(self.time_left()?);
        let Place { keyspace, resume } = self.place.clone();
        let request = KeyRequest::Scan(scan).of(keyspace, resume);
        match self
            .door
            .ask_as_client(entered, request, self.cluster)
            .await?
        {
            NodeResponse::Scan(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    fn time_left(&self) -> Result<Duration> {
        let Some(ends) = self.ends else {
            return Ok(DEADLINE_DEFAULT);
        };
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout {
                what: "the scan".to_owned(),
                after: self.entered.deadline.unwrap_or_default(),
            });
        }
        Ok(left.min(DEADLINE_DEFAULT))
    }
}

/// What a scan still has to read after a portion; `None` at the end of the range, of the one cut that
/// was asked for, or at a limit.
fn rest_of(mut whole: WholeScan, page: &Page) -> Option<WholeScan> {
    let keys = page.items.len() as u64;
    let sizes = page
        .items
        .iter()
        .map(|item| item.key.len() + item.versioned.value.len());
    let bytes = sizes.sum::<usize>() as u64;
    let is_end_of_cut = page.rest_cut.is_none();
    // A portion that stops short of its shard's end without all the keys that it may have was full.
    let cut_by_bytes = !is_end_of_cut
        && u64::from(PAGE_BYTES_MAX) >= whole.bytes_max
        && keys < PAGE_KEYS_MAX.into();
    whole.keys_max = whole.keys_max.saturating_sub(keys);
    whole.bytes_max = whole.bytes_max.saturating_sub(bytes);
    let is_full = whole.keys_max == 0 || whole.bytes_max == 0 || (cut_by_bytes && keys > 0);
    if is_full || (whole.one_cut && is_end_of_cut) {
        return None;
    }
    whole.scan.range = page.rest.clone()?;
    whole.scan.keys_max = u32::try_from(whole.keys_max).unwrap_or(u32::MAX);
    whole.scan.bytes_max = u32::try_from(whole.bytes_max).unwrap_or(u32::MAX);
    whole.scan.cut = page.rest_cut.clone();
    Some(whole)
}

fn place(keyspace: &str) -> Result<Place> {
    Place::of(keyspace, &Key::new())
}

fn refused(error: Error) -> Status {
    to_status(&error, None)
}
