//! Content and changes that a caller asks for.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Encoded protobuf message: an `AttributeValue`, a `ClientInfo` or an `Authentication`.
///
/// `grpc::parse` checks the message. All other modules store and return its bytes without decoding them.
pub type Encoded = Bytes;

/// Content of a new session.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Name of the subject. Empty: anonymous.
    pub subject: String,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Encoded>,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// Encoded `ClientInfo`. None: not set.
    pub client: Option<Encoded>,
    /// Encoded `Authentication`. None: not set.
    pub authentication: Option<Encoded>,
}

/// Changes of an update, applied in this order: clear, remove, set.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// Attributes to set, by name.
    pub set_attributes: BTreeMap<String, Encoded>,
    /// Names of attributes to remove. Missing attributes are ignored.
    pub remove_attributes: Vec<String>,
    /// Whether all attributes are removed first.
    pub clear_attributes: bool,
    /// Labels to set, by name.
    pub set_labels: BTreeMap<String, String>,
    /// Names of labels to remove. Missing labels are ignored.
    pub remove_labels: Vec<String>,
    /// New subject; empty: anonymous. None: unchanged.
    pub subject: Option<String>,
    /// New encoded `Authentication`. None: unchanged.
    pub authentication: Option<Encoded>,
}

impl Patch {
    /// Returns whether the patch changes nothing, whatever the content is.
    pub fn is_empty(&self) -> bool {
        let is_attributes =
            !self.set_attributes.is_empty() || !self.remove_attributes.is_empty() || self.clear_attributes;
        let is_labels = !self.set_labels.is_empty() || !self.remove_labels.is_empty();
        !is_attributes && !is_labels && !self.is_login()
    }

    /// Returns whether the patch is a login: it sets the subject or the authentication.
    ///
    /// A login ends the grace period of every superseded token.
    pub fn is_login(&self) -> bool {
        self.subject.is_some() || self.authentication.is_some()
    }
}
