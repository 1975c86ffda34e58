//! The closed list of causes: why a wait or failure happens, the fix, and the exit code.

use crate::exit;
use std::fmt;

macro_rules! causes {
    ($($variant:ident = $id:literal, $class:ident, $nature:ident, $means:literal, $fix:literal;)+) => {
        /// Why a wait or failure happens.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Cause { $(#[doc = $means] $variant,)+ }

        impl Cause {
            /// Every cause.
            pub const ALL: &'static [Cause] = &[$(Cause::$variant,)+];

            /// The stable identifier: in log lines, metric labels and `/status`.
            pub fn id(self) -> &'static str {
                match self { $(Cause::$variant => $id,)+ }
            }

            fn class(self) -> Class {
                match self { $(Cause::$variant => Class::$class,)+ }
            }

            fn nature(self) -> Nature {
                match self { $(Cause::$variant => Nature::$nature,)+ }
            }

            /// The meaning of the cause, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Cause::$variant => $means,)+ }
            }

            /// The fix for a person, where the finding has no better one.
            pub fn usual_fix(self) -> &'static str {
                match self { $(Cause::$variant => $fix,)+ }
            }
        }
    };
}

/// The class of a cause, which decides the exit code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The cause may pass by itself, or by work elsewhere.
    Unavailable,
    /// A key, or data about keys, is not right.
    Data,
    /// The credentials or their rights are refused, or are not as they should be.
    Credentials,
    /// A setting is wrong or missing.
    Settings,
    /// A file, address or disk of this machine cannot be used.
    Machine,
}

/// The nature of a cause: what the cause says of the peer or of the key, which decides what the program does.
/// Every predicate of [`Cause`] matches all natures, so that a new nature must choose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// No connection came about, so no request was sent.
    Unreached,
    /// The peer gave no answer. A request may have been sent, and carried out.
    Unanswered,
    /// The peer's health page is green, and requests hang or fail.
    Stalled,
    /// TLS found no peer that can be trusted. No request was sent.
    Untrusted,
    /// The peer answers that it serves no requests for now.
    NotServing,
    /// The peer answers with errors of its own, or another server answers in its place.
    Failing,
    /// The peer answers, and refuses the login, the request or the place.
    Refused,
    /// The peer answers, and the login has no right to the path, or there is no mount.
    Forbidden,
    /// No key is stored under the name, and the store shows no trace of one.
    KeyAbsent,
    /// A key was stored under the name, and can be undeleted.
    KeyDeleted,
    /// A key was stored under the name, and its bytes are gone.
    KeyDestroyed,
    /// Another key, or no key at all, is stored in place of the right key.
    KeyWrong,
    /// A key is stored, wrapped by a transit engine that the settings do not name.
    KeyWrapped,
    /// A key exists, and fails a test that the right key would pass.
    KeyDoubtful,
    /// A file, an address or a setting of this machine cannot be used.
    Unusable,
    /// Everything works, and a person should change something.
    Advice,
}

causes! {
    VaultUninitialised = "vault_uninitialised", Unavailable, NotServing, "Vault runs and has never been initialised", "initialise it once: `bao operator init`";
    VaultSealed = "vault_sealed", Unavailable, NotServing, "Vault runs and is sealed; the line says how far the unsealing is", "unseal it: `bao operator unseal`, once for each key share needed";
    VaultUnreachableRefused = "vault_unreachable_refused", Unavailable, Unreached, "nobody listens at the address", "start Vault, or correct KESWARDEN_VAULT_ADDR";
    VaultUnreachableTimeout = "vault_unreachable_timeout", Unavailable, Unanswered, "no answer came in time", "look for a hung Vault, a firewall or a NetworkPolicy in between";
    VaultUnreachableDns = "vault_unreachable_dns", Unavailable, Unreached, "the host name has no address", "correct the host name in KESWARDEN_VAULT_ADDR, or the cluster's DNS";
    VaultUnreachable = "vault_unreachable", Unavailable, Unanswered, "the connection failed in another way, such as a reset", "look at the network between here and Vault";
    VaultTlsUnknownCa = "vault_tls_unknown_ca", Unavailable, Untrusted, "Vault's certificate is signed by nobody whom we trust", "set KESWARDEN_VAULT_CACERT to the PEM file of the CA that signed Vault's certificate";
    VaultTlsName = "vault_tls_name", Unavailable, Untrusted, "Vault's certificate is for other names than the one in the address", "use a name that is in Vault's certificate in KESWARDEN_VAULT_ADDR, or issue the certificate for this name";
    VaultTlsExpired = "vault_tls_expired", Unavailable, Untrusted, "Vault's certificate has expired, or is not valid yet, by this machine's clock", "renew Vault's certificate and send Vault a SIGHUP; check this machine's clock";
    VaultTlsPlainHttp = "vault_tls_plain_http", Unavailable, Untrusted, "one side speaks TLS and the other one plain HTTP", "use https:// in KESWARDEN_VAULT_ADDR for a port with TLS, http:// for one without";
    VaultTlsOther = "vault_tls", Unavailable, Untrusted, "the TLS handshake failed in another way", "check that the address speaks TLS, and which certificate it shows";
    VaultNoLeader = "vault_standby_without_leader", Unavailable, NotServing, "a standby answers, and there is no leader", "wait for the election; if it lasts, look at Vault's cluster for lost quorum";
    VaultRateLimited = "vault_rate_limited", Unavailable, NotServing, "Vault answers 429; a pause that it asks for is kept", "raise the rate-limit quota that covers this path";
    VaultUnhealthy = "vault_unhealthy", Unavailable, Failing, "Vault answers with errors of its own, or something else answers in its place", "read Vault's own log: lost storage or lost quorum look like this";
    VaultBehindGreenHealth = "vault_unhealthy_behind_green_health", Unavailable, Stalled, "Vault's health page is green, and what was asked of it fails or is not answered", "read Vault's own log, and look at its audit devices first: while one is full or stalled every request fails or hangs, and the health page knows nothing of it";
    NamespaceMissing = "namespace_missing", Unavailable, Refused, "the namespace does not exist", "create the namespace, or correct KESWARDEN_VAULT_NAMESPACE";
    NamespaceSealed = "namespace_sealed", Unavailable, NotServing, "the namespace is sealed, whatever the rest of Vault is", "unseal the namespace: `bao namespace unseal`";
    NamespaceLocked = "namespace_locked", Unavailable, Refused, "the namespace is locked for its API", "unlock the namespace: `bao namespace unlock`";
    LoginRefused = "login_refused", Credentials, Refused, "the login was answered with 400: the credentials are wrong, expired or used up", "replace the credentials; a wrong, expired or used-up secret_id all look like this";
    LoginDenied = "login_denied", Credentials, Refused, "the login was answered with 403", "check that the auth mount and the role exist";
    LoginLockedOut = "login_locked_out", Credentials, Refused, "an AppRole login was answered with 403: five refused ones lock the role out for 15 minutes, with the right secret_id too", "look who is locked out: `bao read sys/locked-users`, and unlock, or switch the lockout off for AppRole (`bao auth tune -user-lockout-disable=true approle/`); a missing auth mount looks the same";
    KubernetesReviewFailed = "kubernetes_review_failed", Credentials, Refused, "a Kubernetes login was answered with 403 and nothing more: the token review failed, or said no", "check that Vault reaches the Kubernetes API and may review tokens (system:auth-delegator), and that the service account is there: both look the same";
    SecretIdUsed = "secret_id_expired_or_used", Credentials, Refused, "the wrapping token of the secret_id has expired, was opened before, or was made by somebody else", "issue a new secret_id; if nobody else was to unwrap this one, somebody has: find out who";
    ClockSkew = "clock_skew", Unavailable, Advice, "this machine's clock and Vault's differ by more than a minute", "set the clocks (NTP): certificates and limits in time go by them";
    CredentialUnreadable = "credential_unreadable", Machine, Unusable, "a file with a credential cannot be read", "make the credential file readable for this process, with the credential in it";
    TlsFileUnusable = "tls_file_unusable", Machine, Unusable, "a file with a certificate or key cannot be read or used", "mount the file, in PEM form, readable for this process";
    TokenDead = "token_dead", Credentials, Refused, "Vault does not know the token any more", "give a fresh token: this one is expired, revoked or not of this Vault";
    TokenDeadAtOnce = "token_dead_at_once", Credentials, Refused, "Vault grants tokens, and does not know them a moment later", "look at token_bound_cidrs and token_num_uses of the role, and whether somebody revokes its tokens: no login is tried again at once";
    TokenRightsMissing = "token_rights_missing", Credentials, Advice, "the policy does not let the token look itself up or renew itself, so it ends unforeseen", "add to the policy: path \"auth/token/lookup-self\" { capabilities = [\"read\"] } and path \"auth/token/renew-self\" { capabilities = [\"update\"] }";
    TokenUsesLimited = "token_uses_limited", Credentials, Advice, "the token may be used so many times, and then it is dead", "set token_num_uses=0 on the role";
    RightsBeyondNeed = "rights_beyond_need", Credentials, Advice, "the login may do what nobody here needs: overwrite, delete, or see other tenants' keys", "take the right away from the policy; deploy/vault/keswarden-policy.hcl has what is needed";
    SecretIdExpiring = "secret_id_expiring", Credentials, Advice, "the secret_id ends within two weeks, or has few uses left", "issue a new secret_id and put it into its file: it is read at the next login";
    CertificateExpired = "certificate_expired", Machine, Unusable, "a certificate has ended, or is not valid yet, by this machine's clock", "renew it: files are read again by themselves; check this machine's clock";
    CertificateExpiring = "certificate_expiring", Machine, Advice, "a certificate ends within a week, or has lived three quarters of its life", "renew it: files are read again by themselves";
    MountHistoryShort = "mount_history_short", Settings, Advice, "the mount keeps so few versions of a key that a few writes push version 1 out, which is what counts", "raise max_versions on the mount to 100";
    MountCasOptional = "mount_cas_optional", Settings, Advice, "the mount does not demand compare-and-set, so a careless write goes over a key", "set cas_required=true on the mount";
    PolicyMissing = "policy_missing", Credentials, Forbidden, "the token lives, and its policy does not allow the path; the fix has the stanza", "add the path to the policy of this role or token";
    MountMissing = "mount_missing", Unavailable, Forbidden, "there is no K/V engine at the mount, or the policy allows nothing below it", "enable the K/V engine, or correct KESWARDEN_VAULT_KV_MOUNT";
    MountVersionMismatch = "mount_version_mismatch", Settings, Refused, "the mount is of the other K/V version than was set", "set KESWARDEN_VAULT_KV_VERSION=auto, or to the version of the mount";
    TransitKeyMissing = "transit_key_missing", Unavailable, Refused, "the transit engine has no key of that name", "correct KESWARDEN_VAULT_TRANSIT_KEY or _MOUNT, or restore the transit key from a backup: a new one of the same name opens nothing";
    TransitKeyDeleted = "transit_key_deleted", Unavailable, Refused, "the transit key was soft-deleted", "restore it: `bao write -f transit/keys/NAME/soft-delete-restore`";
    TransitVersionRefused = "transit_version_refused", Unavailable, Refused, "the transit key is there, and not in the version that wrapped the key", "allow it again: lower min_decryption_version of the transit key (`bao write transit/keys/NAME/config min_decryption_version=1`)";
    TransitRotated = "transit_rotated", Settings, Advice, "what is written now is wrapped in a way that no KES can read, so there is no way back for new keys", "nothing, unless KES is to read keys that are made from now on";
    TransitFailed = "transit_failed", Unavailable, Refused, "Vault's transit engine did not wrap or unwrap the key in another way", "check that it is the transit key that wrapped it: another one of the same name opens nothing";
    StoreUnset = "store_unset", Settings, Unusable, "no key store is configured, and this command cannot do with KES alone", "set KESWARDEN_VAULT_ADDR, or KESWARDEN_FS_DIR, or give --config";
    StoreUnavailable = "store_unavailable", Unavailable, NotServing, "the key directory cannot be read or written, or a store contradicts itself", "make the key directory readable and writable for this process";
    KeyMissing = "key_missing", Unavailable, KeyAbsent, "there is no such key in the key store; the line says whether there ever was one, and the fix where it can be had", "bring the key back, from whoever has it; a new one opens nothing that the former one sealed";
    KeyDeleted = "key_deleted", Unavailable, KeyDeleted, "version 1 of the key was deleted, and can be undeleted; the fix has the command", "undelete it";
    KeyDestroyed = "key_destroyed", Data, KeyDestroyed, "the key was there and is gone from the key store: destroyed, pushed out by later versions, or absent for half a minute from under an agent that holds it", "restore the key from a backup: its data is gone from Vault";
    KeyMalformed = "key_malformed", Data, KeyWrong, "what is stored under the name is no key", "restore the key from a backup; do not overwrite it before you know what it was";
    KeyReplaced = "key_replaced", Data, KeyWrong, "another key is stored under the name than before: the one that is remembered, in use, or that sealed the data", "restore the former key: what it sealed opens with nothing else";
    KeyOverwritten = "key_overwritten", Data, Advice, "later versions were written beside version 1, which is what counts and is well", "find out who writes over keys; version 1 is what counts, while it is there";
    KeyUnproven = "key_unproven", Data, Advice, "the key opens nothing of the little that was looked at on the drives, which proves nothing either way", "look at more: `keswarden evidence --all DRIVE…`";
    KeyUnpinned = "key_unpinned", Data, Advice, "the key has no pin where one is demanded, or nothing that outlives this machine's next start remembers it", "pin the key once you know that it is the right one: `keswarden key pin NAME`; or give its memory a place that lasts: KESWARDEN_STATE_DIR, KESWARDEN_PIN_KV";
    DrivesUnreadable = "drives_unreadable", Machine, Unusable, "the tenant's drives cannot be read, so they prove nothing", "mount the tenant's volumes, read-only will do, where KESWARDEN_DRIVES says";
    KeyMixed = "key_mixed", Data, KeyDoubtful, "the key opens some of the data and not the rest: somebody has booted on another key of this name", "do not start MinIO: some objects are sealed with another key of this name; find that key, and keep both";
    CopyUnusable = "sealed_copy_unusable", Data, Unusable, "the sealed copy does not open: changed, of another tenant, or sealed with another wrapping key", "check KESWARDEN_OFFLINE_KEY_FILE and KESWARDEN_TENANT; a copy that was changed is of no use: remove it";
    CopyExpired = "sealed_copy_expired", Unavailable, Unusable, "the sealed copy is older than KESWARDEN_OFFLINE_MAX", "bring Vault back: a copy counts for KESWARDEN_OFFLINE_MAX only";
    BackupUnusable = "backup_unusable", Data, Unusable, "a backup cannot be written, or does not open", "use another backup; this one was not written to, and is not read in part";
    PinConflict = "pin_conflict", Data, Unusable, "what is kept in place of a pin or canary is none, or was written by a later version", "restore the file or secret from a backup, or remove it once you know that the key is the right one";
    MemoryUnusable = "memory_unusable", Machine, Unusable, "a place that remembers keys cannot be read or written, so it is not asked", "make the state directory readable and writable for this process, or set KESWARDEN_STATE_DIR to one that is";
    KeyTransitUnset = "key_transit_unset", Settings, KeyWrapped, "the stored key is wrapped by transit, and no transit key is set", "set KESWARDEN_VAULT_TRANSIT_KEY: the key is wrapped by Vault's transit engine";
    KeyTestFailed = "key_test_failed", Data, KeyDoubtful, "the key does not open what it has just sealed", "report this: a key that parses must seal and open";
    KesUnreachable = "kes_unreachable", Unavailable, Unanswered, "KES does not answer", "start KES, or correct MINIO_KMS_KES_ENDPOINT; when that is keswarden's own address, set MINIO_KMS_KES_CAPATH to the ca.crt in KESWARDEN_RUN_DIR";
    KesTlsUnknownCa = "kes_tls_unknown_ca", Unavailable, Untrusted, "KES's certificate is signed by nobody whom MinIO trusts", "set MINIO_KMS_KES_CAPATH to the CA of KES's certificate";
    KesTlsName = "kes_tls_name", Unavailable, Untrusted, "KES's certificate is for other names than the one in the endpoint", "use a name that is in KES's certificate in MINIO_KMS_KES_ENDPOINT, or issue the certificate for this name";
    KesTlsExpired = "kes_tls_expired", Unavailable, Untrusted, "KES's certificate has expired, or is not valid yet, by this machine's clock", "renew KES's certificate; check this machine's clock";
    KesTlsPlainHttp = "kes_tls_plain_http", Unavailable, Untrusted, "the endpoint is not https://, or what listens there speaks no TLS", "KES speaks TLS only: correct MINIO_KMS_KES_ENDPOINT";
    KesTls = "kes_tls", Unavailable, Untrusted, "TLS to KES failed in another way", "check which certificate KES shows, and that the files of MINIO_KMS_KES_CAPATH are certificates";
    KesIdentityUnknown = "kes_identity_unknown", Credentials, Refused, "KES gives MinIO's identity no policy, or gets no client certificate that it takes", "give the API key, or the client certificate and key, that KES's policy names; or add the identity to a policy";
    KesDenied = "kes_denied", Credentials, Refused, "KES's policy does not allow MinIO's identity what MinIO needs; the fix has the lines", "allow MinIO's identity these paths in KES's policy";
    KesKeyMissing = "kes_key_missing", Unavailable, KeyAbsent, "KES has no such key", "create the key: `kes key create`";
    KesBackendDown = "kes_backend_down", Unavailable, Refused, "KES answers 5xx: its own key store is away", "look at what KES stores its keys in; its error log names the reason";
    KesDisagrees = "kes_disagrees", Data, KeyDoubtful, "KES has another key under this name than the key store here", "do not start MinIO with both: find out which of the two sealed the data (`keswarden evidence`)";
    KesRoundTripFailed = "kes_round_trip_failed", Data, KeyDoubtful, "KES opens a data key to other bytes than it has sealed", "do not start MinIO: KES does not open what it has just sealed";
    MinioUnreachable = "minio_unreachable", Unavailable, Unanswered, "MinIO does not answer at KESWARDEN_MINIO_ENDPOINT", "start MinIO, or correct KESWARDEN_MINIO_ENDPOINT; before its first start this is as it should be";
    MinioNotReady = "minio_not_ready", Unavailable, Refused, "MinIO runs, and its readiness probe fails: it asks KES for a data key there", "read the error that the probe gives: KMS errors are told there and nowhere else";
    SettingDoubtful = "setting_doubtful", Settings, Advice, "a name among the settings is none of this version, or says something that does nothing", "correct the name, or take it away";
    MinioEnvIncomplete = "minio_env_incomplete", Settings, Unusable, "MinIO's KES settings lack something", "complete MINIO_KMS_KES_*: MinIO would not start with this either";
    MinioEnvConflict = "minio_env_conflict", Settings, Unusable, "MinIO's KES settings contradict one another", "remove one of them: MinIO would not start with this either";
    MinioEnvUnreadable = "minio_env_unreadable", Unavailable, Unusable, "MinIO's environment file cannot be read", "wait for the file to be written, or correct KESWARDEN_MINIO_ENV_FILE";
    CannotBind = "cannot_bind", Machine, Unusable, "the address is taken, or is none of this machine", "stop what holds the address, or choose another";
    RunDirUnusable = "run_dir_unusable", Machine, Unusable, "the run directory cannot be written", "make KESWARDEN_RUN_DIR writable for this process";
}

/// A cause, with the observation and the fix of this case. Holds no secret: findings are printed, logged and
/// served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The cause.
    pub cause: Cause,
    /// The observation: what was tried, on what, and what was seen, in the peer's own words.
    pub seen: String,
    /// The fix: what a person does about the cause here.
    pub fix: String,
}

// === impl Cause ===

impl Cause {
    /// A finding with the usual fix.
    pub fn seen(self, seen: impl Into<String>) -> Finding {
        Finding { cause: self, seen: seen.into(), fix: self.usual_fix().to_owned() }
    }

    /// Whether keys may come from a sealed copy: the store is away, and neither empty, wrong, nor closed to
    /// this login.
    pub fn allows_sealed_copy(self) -> bool {
        use Nature::*;
        match self.nature() {
            Unreached | Unanswered | Stalled | NotServing | Failing => true,
            Untrusted | Refused | Forbidden | KeyAbsent | KeyDeleted | KeyDestroyed | KeyWrong
            | KeyWrapped | KeyDoubtful | Unusable | Advice => false,
        }
    }

    /// Whether the peer gave any answer, a refusal included.
    pub fn is_an_answer(self) -> bool {
        use Nature::*;
        match self.nature() {
            Unreached | Unanswered | Untrusted => false,
            Stalled | NotServing | Failing | Refused | Forbidden | KeyAbsent | KeyDeleted | KeyDestroyed
            | KeyWrong | KeyWrapped | KeyDoubtful | Unusable | Advice => true,
        }
    }

    /// Whether a request without an answer may have been carried out.
    pub fn may_have_been_sent(self) -> bool {
        use Nature::*;
        match self.nature() {
            Unanswered | Stalled => true,
            Unreached | Untrusted | NotServing | Failing | Refused | Forbidden | KeyAbsent | KeyDeleted
            | KeyDestroyed | KeyWrong | KeyWrapped | KeyDoubtful | Unusable | Advice => false,
        }
    }

    /// Whether KES would call its key store unreachable (504), rather than unavailable (503).
    pub fn is_store_unreachable(self) -> bool {
        use Nature::*;
        match self.nature() {
            Stalled | Failing | Forbidden => false,
            Unreached | Unanswered | Untrusted | NotServing | Refused | KeyAbsent | KeyDeleted
            | KeyDestroyed | KeyWrong | KeyWrapped | KeyDoubtful | Unusable | Advice => true,
        }
    }

    /// Whether the store has certainly lost the right key: data sealed with the held key would open nowhere
    /// after a restart.
    pub fn is_key_lost(self) -> bool {
        use Nature::*;
        match self.nature() {
            KeyDestroyed | KeyWrong => true,
            Unreached | Unanswered | Stalled | Untrusted | NotServing | Failing | Refused | Forbidden
            | KeyAbsent | KeyDeleted | KeyWrapped | KeyDoubtful | Unusable | Advice => false,
        }
    }

    /// Whether the store answers that it has no key of the name to give, with or without a trace of one.
    pub fn is_no_key(self) -> bool {
        use Nature::*;
        match self.nature() {
            KeyAbsent | KeyDeleted | KeyDestroyed => true,
            Unreached | Unanswered | Stalled | Untrusted | NotServing | Failing | Refused | Forbidden
            | KeyWrong | KeyWrapped | KeyDoubtful | Unusable | Advice => false,
        }
    }

    /// Whether the store's answer shows that a text is or was stored under the name.
    pub fn is_trace_of_key(self) -> bool {
        use Nature::*;
        match self.nature() {
            KeyDeleted | KeyDestroyed | KeyWrong | KeyWrapped | KeyDoubtful => true,
            Unreached | Unanswered | Stalled | Untrusted | NotServing | Failing | Refused | Forbidden
            | KeyAbsent | Unusable | Advice => false,
        }
    }

    /// Whether the cause is a warning, which changes no exit code: everything works for now.
    pub fn is_advice(self) -> bool {
        self.nature() == Nature::Advice
    }

    /// The exit code of a process that ends on this cause.
    pub fn exit_code(self) -> u8 {
        match self.class() {
            Class::Unavailable => exit::UNAVAILABLE,
            Class::Data => exit::DATA,
            Class::Credentials => exit::CREDENTIALS,
            Class::Settings => exit::SETTINGS,
            Class::Machine => exit::OS,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

// === impl Finding ===

impl Finding {
    /// The same finding with a better fix.
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; fix: {}", self.cause, self.seen, self.fix)
    }
}

impl std::error::Error for Finding {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique_and_fit_a_metric_label() {
        let mut ids: Vec<_> = Cause::ALL.iter().map(|cause| cause.id()).collect();
        assert!(ids.iter().all(|id| id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Cause::ALL.len());
    }
}
