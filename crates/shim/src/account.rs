//! Lines of `/etc/passwd` and `/etc/group`, and Docker's way of naming a user.
//!
//! Pure and without allocation. Not here: opening the files inside a container (the shim does).

/// Highest id that Docker accepts, 2^31 - 1.
pub const ID_MAX: u32 = i32::MAX as u32;

/// `user`, `uid`, `user:group`, `uid:gid` and mixtures; empty parts mean the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub user: &'a [u8],
    pub group: &'a [u8],
}

impl<'a> Wanted<'a> {
    pub fn parse(text: &'a [u8]) -> Self {
        match text.iter().position(|byte| *byte == b':') {
            Some(at) => Self { user: &text[..at], group: &text[at + 1..] },
            None => Self { user: text, group: b"" },
        }
    }

    /// Whether a passwd line is the one that was asked for; nothing asked is root.
    pub fn is_user(&self, entry: &Passwd<'_>) -> bool {
        if self.user.is_empty() {
            return entry.uid == 0;
        }
        entry.name == self.user || id(self.user) == Some(entry.uid)
    }

    /// Whether a group line is the one that was asked for by name or number.
    pub fn is_group(&self, entry: &Group<'_>) -> bool {
        !self.group.is_empty() && (entry.name == self.group || id(self.group) == Some(entry.gid))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passwd<'a> {
    pub name: &'a [u8],
    pub uid: u32,
    pub gid: u32,
    pub home: &'a [u8],
}

impl<'a> Passwd<'a> {
    /// `None` for comments and broken lines.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let _comment = fields.next();
        Some(Self { name, uid, gid, home: fields.next().unwrap_or(b"") })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group<'a> {
    pub name: &'a [u8],
    pub gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    /// `None` for comments and broken lines.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or(b"") })
    }

    pub fn has_member(&self, name: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member == name)
    }
}

/// A decimal id up to [`ID_MAX`].
pub fn id(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let number = text.iter().try_fold(0_u32, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u32::from(digit))
    })?;
    (number <= ID_MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines() {
        let bob = Passwd::parse(b"bob:x:1000:100:Bob,,,:/home/bob:/bin/sh").unwrap();
        assert_eq!(
            (bob.name, bob.uid, bob.gid, bob.home),
            (&b"bob"[..], 1000, 100, &b"/home/bob"[..])
        );
        assert_eq!(Passwd::parse(b"a:x:1:2").unwrap().home, b"");
        for line in
            ["", "# bob", ":x:0:0:::", "bob:x:abc:0:::", "bob:x:4294967296:0:::", "bob:x:-1:0"]
        {
            assert_eq!(Passwd::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn group_lines() {
        let staff = Group::parse(b"staff:x:50:bob,eve").unwrap();
        assert_eq!((staff.name, staff.gid), (&b"staff"[..], 50));
        assert!(staff.has_member(b"bob") && staff.has_member(b"eve"));
        assert!(!staff.has_member(b"bo") && !staff.has_member(b"bob,eve"));
        assert_eq!(Group::parse(b"staff:x:"), None);
    }

    #[test]
    fn wanted() {
        let bob = Passwd::parse(b"bob:x:1000:100::/:").unwrap();
        let root = Passwd::parse(b"root:x:0:0::/root:").unwrap();
        let staff = Group::parse(b"staff:x:50:bob").unwrap();
        for (text, is_bob, is_root, is_staff) in [
            ("", false, true, false),
            ("bob", true, false, false),
            ("1000", true, false, false),
            ("bob:staff", true, false, true),
            ("0:50", false, true, true),
            (":staff", false, true, true),
            ("eve:51", false, false, false),
        ] {
            let wanted = Wanted::parse(text.as_bytes());
            assert_eq!(wanted.is_user(&bob), is_bob, "{text}");
            assert_eq!(wanted.is_user(&root), is_root, "{text}");
            assert_eq!(wanted.is_group(&staff), is_staff, "{text}");
        }
    }
}
