//! Requests of the protocol that this broker does not serve, and does not advertise either.
//!
//! A client that asks `ApiVersions` first, as all that we know do, never sends one: it tells its user
//! at once. One that sends it all the same gets UNSUPPORTED_VERSION, in the layout of that request's
//! reply; where that layout has no place for an error of the whole request, and for numbers that mean
//! nothing, the connection is closed, as Apache Kafka does for all of these.

use bytes::BytesMut;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsResponse, ApiKey, CreateDelegationTokenResponse, DescribeAclsResponse,
    DescribeClientQuotasResponse, DescribeDelegationTokenResponse, DescribeLogDirsResponse, DescribeQuorumResponse,
    DescribeUserScramCredentialsResponse, ElectLeadersResponse, ExpireDelegationTokenResponse,
    GetTelemetrySubscriptionsResponse, ListConfigResourcesResponse, ListPartitionReassignmentsResponse,
    PushTelemetryResponse, RenewDelegationTokenResponse, SaslAuthenticateResponse, SaslHandshakeResponse,
    ShareAcknowledgeResponse, ShareFetchResponse, ShareGroupHeartbeatResponse, UnregisterBrokerResponse,
    UpdateFeaturesResponse,
};

use super::frame::{Refusal, encode};

/// The reply that says so.
pub(crate) fn refuse(key: ApiKey, version: i16, correlation: i32) -> Result<BytesMut, Refusal> {
    let code = ResponseError::UnsupportedVersion.code();
    macro_rules! answer {
        ($($key:ident: $reply:ident),+ $(,)?) => {
            match key {
                $(ApiKey::$key => encode(correlation, version, &$reply::default().with_error_code(code)),)+
                other => Err(Refusal::UnknownKey(other as i16)),
            }
        };
    }
    // These have a place for the error only since a later version.
    if matches!((key, version), (ApiKey::DescribeLogDirs, ..3) | (ApiKey::ElectLeaders, ..1)) {
        return Err(Refusal::UnknownKey(key as i16));
    }
    answer! {
        AlterPartitionReassignments: AlterPartitionReassignmentsResponse,
        CreateDelegationToken: CreateDelegationTokenResponse,
        DescribeAcls: DescribeAclsResponse,
        DescribeClientQuotas: DescribeClientQuotasResponse,
        DescribeDelegationToken: DescribeDelegationTokenResponse,
        DescribeLogDirs: DescribeLogDirsResponse,
        DescribeQuorum: DescribeQuorumResponse,
        DescribeUserScramCredentials: DescribeUserScramCredentialsResponse,
        ElectLeaders: ElectLeadersResponse,
        ExpireDelegationToken: ExpireDelegationTokenResponse,
        GetTelemetrySubscriptions: GetTelemetrySubscriptionsResponse,
        ListConfigResources: ListConfigResourcesResponse,
        ListPartitionReassignments: ListPartitionReassignmentsResponse,
        PushTelemetry: PushTelemetryResponse,
        RenewDelegationToken: RenewDelegationTokenResponse,
        SaslAuthenticate: SaslAuthenticateResponse,
        SaslHandshake: SaslHandshakeResponse,
        ShareAcknowledge: ShareAcknowledgeResponse,
        ShareFetch: ShareFetchResponse,
        ShareGroupHeartbeat: ShareGroupHeartbeatResponse,
        UnregisterBroker: UnregisterBrokerResponse,
        UpdateFeatures: UpdateFeaturesResponse,
    }
}
