//! `/sandboxes/:s/publish`: ports with a public URL.

use bhatti_api::{Publish, PublishRule, Published, route, to_json};
use http::Method;

use crate::client::Call;
use crate::{Client, ClientError};

impl Client {
    /// `POST`: publishes a port, or finds it published. Wakes nothing.
    pub async fn publish(&self, sandbox: &str, wanted: &Publish) -> Result<Published, ClientError> {
        let path = route::publish(sandbox);
        let mut call = Call::new(Method::POST, &path);
        call.body = Some(to_json(wanted));
        let mut published: Published = self.json(call).await?.0;
        published.url = self.reachable(published.url);
        published.link = published.link.map(|link| self.reachable(link));
        Ok(published)
    }

    /// `GET`: what of a sandbox is published.
    pub async fn published(&self, sandbox: &str) -> Result<Vec<PublishRule>, ClientError> {
        let path = route::publish(sandbox);
        let mut rules: Vec<PublishRule> = self.json(Call::new(Method::GET, &path)).await?.0;
        for rule in &mut rules {
            rule.url = self.reachable(std::mem::take(&mut rule.url));
        }
        Ok(rules)
    }

    /// `DELETE`: from here on nobody is answered there.
    pub async fn unpublish(&self, sandbox: &str, port: u16) -> Result<(), ClientError> {
        let path = route::unpublish(sandbox, port);
        self.json(Call::new(Method::DELETE, &path)).await.map(|((), _)| ())
    }

    /// A URL without a host is one of the server's, which does not know by what name.
    pub(crate) fn reachable(&self, url: String) -> String {
        match url.strip_prefix("http://:") {
            Some(rest) => {
                let host = &self.endpoint().host;
                // Literals of IPv6 stand in brackets.
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                format!("http://{host}:{rest}")
            }
            None => url,
        }
    }
}
