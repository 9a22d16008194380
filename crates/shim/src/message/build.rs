//! Writing a message: the daemon's side, which may allocate.

use super::{Device, HEADER, MAGIC, MESSAGE_MAX, MountKind, Settings, Tag, Ulimit, VERSION};

/// Writes a message; the daemon's side.
#[derive(Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

/// A string holds a NUL, which no system call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HasNul;

impl Builder {
    pub fn new(settings: &Settings) -> Self {
        let mut builder = Self { bytes: vec![0; HEADER] };
        let mut bytes = Vec::with_capacity(Settings::LEN);
        bytes.extend_from_slice(&settings.flags.to_le_bytes());
        bytes.extend_from_slice(&settings.kept.to_le_bytes());
        bytes.extend_from_slice(&settings.capabilities.to_le_bytes());
        bytes.extend_from_slice(&settings.log_max_bytes.to_le_bytes());
        bytes.extend_from_slice(&settings.log_max_files.to_le_bytes());
        bytes.extend_from_slice(&settings.rows.to_le_bytes());
        bytes.extend_from_slice(&settings.columns.to_le_bytes());
        builder.bytes(Tag::Settings, &bytes);
        builder
    }

    pub fn bytes(&mut self, tag: Tag, bytes: &[u8]) {
        self.record(tag, &[bytes]);
    }

    /// # Errors
    /// When the text holds a NUL.
    pub fn text(&mut self, tag: Tag, text: &[u8]) -> Result<(), HasNul> {
        no_nul(text)?;
        self.record(tag, &[text, &[0]]);
        Ok(())
    }

    /// # Errors
    /// When a text holds a NUL.
    pub fn pair(&mut self, tag: Tag, first: &[u8], second: &[u8]) -> Result<(), HasNul> {
        no_nul(first)?;
        no_nul(second)?;
        self.record(tag, &[first, &[0], second, &[0]]);
        Ok(())
    }

    /// # Errors
    /// When a path holds a NUL.
    pub fn mount(
        &mut self,
        kind: MountKind,
        read_only: bool,
        source: &[u8],
        target: &[u8],
    ) -> Result<(), HasNul> {
        no_nul(source)?;
        no_nul(target)?;
        let (number, size_bytes, mode, exec) = match kind {
            MountKind::Bind => (1_u32, 0, 0, false),
            MountKind::Tmpfs { size_bytes, mode, exec } => (2, size_bytes, mode, exec),
            MountKind::Tree { index } => (3, 0, index, false),
        };
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&number.to_le_bytes());
        head.extend_from_slice(&u32::from(read_only).to_le_bytes());
        head.extend_from_slice(&size_bytes.to_le_bytes());
        head.extend_from_slice(&mode.to_le_bytes());
        head.extend_from_slice(&u32::from(exec).to_le_bytes());
        self.record(Tag::Mount, &[&head, source, &[0], target, &[0]]);
        Ok(())
    }

    /// Of /dev/shm.
    pub fn shared_memory(&mut self, bytes: u64) {
        self.record(Tag::SharedMemory, &[&bytes.to_le_bytes()]);
    }

    pub fn device(&mut self, device: &Device<'_>) {
        let Device { is_block, major, minor, mode, user, group, path } = *device;
        let mut head = Vec::with_capacity(24);
        for number in [u32::from(is_block), major, minor, mode, user, group] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        self.record(Tag::Device, &[&head, path.to_bytes_with_nul()]);
    }

    pub fn ulimit(&mut self, limit: Ulimit) {
        let Ulimit { resource, soft, hard } = limit;
        let resource = u64::from(resource).to_le_bytes();
        self.record(Tag::Ulimit, &[&resource, &soft.to_le_bytes(), &hard.to_le_bytes()]);
    }

    /// # Errors
    /// When the target holds a NUL.
    pub fn file(&mut self, mode: u32, target: &[u8], data: &[u8]) -> Result<(), HasNul> {
        no_nul(target)?;
        self.record(Tag::File, &[&mode.to_le_bytes(), target, &[0], data]);
        Ok(())
    }

    /// The whole message, or `None` when it is larger than [`MESSAGE_MAX`].
    pub fn finish(mut self) -> Option<Vec<u8>> {
        if self.bytes.len() > MESSAGE_MAX {
            return None;
        }
        let len = self.bytes.len() as u64;
        self.bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&len.to_le_bytes());
        Some(self.bytes)
    }

    fn record(&mut self, tag: Tag, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.extend_from_slice(&tag.number().to_le_bytes());
        // Longer ones make `finish` refuse the message.
        self.bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

fn no_nul(text: &[u8]) -> Result<(), HasNul> {
    if text.contains(&0) { Err(HasNul) } else { Ok(()) }
}
