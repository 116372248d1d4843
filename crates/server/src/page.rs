//! The page: a few files compiled into the binary. They load nothing from anywhere else, and the policy makes sure.

/// A file of the page.
pub(crate) struct File {
    pub(crate) path: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) text: &'static str,
}

/// All of them.
pub(crate) static FILES: [File; 4] = [
    File { path: "/", kind: "text/html; charset=utf-8", text: include_str!("../page/index.html") },
    File { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("../page/page.css") },
    File { path: "/page.js", kind: "text/javascript; charset=utf-8", text: include_str!("../page/page.js") },
    File { path: "/vendor.js", kind: "text/javascript; charset=utf-8", text: include_str!("../page/vendor.js") },
];

/// Content security policy: own files only, no inline script. KaTeX's MathML carries inline styles.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
