//! Reads the members of a tar archive: ustar, GNU (long names, sparse files) and PAX (everything).
//!
//! The `tar` crate takes single headers apart; putting members together is done here, because its iterator keeps
//! headers of any size in memory, ends PAX values at their first newline (names and binary attributes may hold
//! some), and takes the end of the file for the end of the archive. Nothing here touches the file system.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

/// The unit in which archives are written, in bytes.
const BLOCK: usize = 512;
/// The most bytes that everything before a member's data may have; long names and attributes are in there.
const MAX_HEADERS: u64 = 4 << 20;
/// Bytes that are skipped at once.
const CHUNK: usize = 64 * 1024;

/// A member of an archive, without its data.
pub(super) struct Member {
    pub header: Header,
    /// The whole name, as it is.
    pub name: Vec<u8>,
    /// What a link leads to, as it is; empty for anything else.
    pub link: Vec<u8>,
    /// The size of the file in bytes, holes included.
    pub size: u64,
    /// Where the stored bytes go, in order: offset and length. One piece unless the file has holes.
    pub pieces: Vec<(u64, u64)>,
    /// The fields of the PAX header.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// The value of a PAX field.
    pub fn field(&self, key: &str) -> Option<&[u8]> {
        field(&self.fields, key)
    }

    /// The value of a PAX field that is a number.
    pub fn number(&self, key: &str) -> io::Result<Option<u64>> {
        number_field(&self.fields, key)
    }
}

/// An archive that is read from front to back.
pub(super) struct TarReader<R> {
    reader: R,
    /// Unread bytes of the current member's data, and those that fill its last block.
    left: u64,
    padding: u64,
    /// How many bytes of headers may still come before the next member's data.
    budget: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0, budget: 0 }
    }

    /// The next member; what is unread of the last one is skipped. `None` at the mark that ends an archive;
    /// an end without it is an error.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        self.budget = MAX_HEADERS;
        let mut long_name = None;
        let mut long_link = None;
        let mut fields = Vec::new();
        loop {
            self.skip()?;
            let mut header = Header::new_old();
            self.read_headers(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|b| *b == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let kind = header.entry_type();
            if !is_about_another(kind) {
                return self.member(header, long_name, long_link, fields).map(Some);
            }
            self.expect(header.entry_size()?)?;
            let text = self.read_whole()?;
            match kind {
                EntryType::GNULongName => long_name = Some(without_final_zeros(text)),
                EntryType::GNULongLink => long_link = Some(without_final_zeros(text)),
                EntryType::XHeader => fields = parse_fields(&text)?,
                // About the archive as a whole; git puts a comment there.
                _ => {}
            }
        }
    }

    /// Reads data of the current member; nothing at its end.
    pub fn read_data(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.reader.read(&mut into[..most]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.left -= n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what follows the archive, at most `limit` bytes, and gives their number: decoders tell of missing and
    /// broken bytes only at the very end.
    pub fn read_rest(mut self, limit: u64) -> io::Result<u64> {
        io::copy(&mut self.reader.by_ref().take(limit), &mut io::sink())
    }

    fn member(
        &mut self,
        header: Header,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> io::Result<Member> {
        let name = field(&fields, "GNU.sparse.name").or_else(|| field(&fields, "path")).map(<[u8]>::to_vec);
        let name = name.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = field(&fields, "linkpath").map(<[u8]>::to_vec).or(long_link);
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        // Links, folders and devices have no data; some programs give the size of the file that is linked to.
        let stored = if has_data(header.entry_type()) {
            match number_field(&fields, "size")? {
                Some(size) => size,
                None => header.entry_size()?,
            }
        } else {
            0
        };
        let mut member = Member { header, name, link, size: stored, pieces: vec![(0, stored)], fields };
        if member.header.entry_type() == EntryType::GNUSparse {
            self.old_sparse(&mut member)?;
            self.expect(stored)?;
        } else {
            self.expect(stored)?;
            self.pax_sparse(&mut member)?;
        }
        check_pieces(&member, self.left)?;
        Ok(member)
    }

    /// The map of a sparse file in GNU's own form: in the header, and in blocks of its own after it.
    fn old_sparse(&mut self, member: &mut Member) -> io::Result<()> {
        let Some(gnu) = member.header.as_gnu() else { return Err(bad("a sparse file without a GNU header")) };
        let mut pieces = Vec::new();
        for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
            pieces.push((piece.offset()?, piece.length()?));
        }
        let mut more = gnu.is_extended();
        let size = gnu.real_size()?;
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.read_headers(block.as_mut_bytes())?;
            for piece in block.sparse().iter().filter(|piece| !piece.is_empty()) {
                pieces.push((piece.offset()?, piece.length()?));
            }
            more = block.is_extended();
        }
        member.size = size;
        member.pieces = pieces;
        Ok(())
    }

    /// The map of a sparse file in PAX form: in fields that are repeated (0.0), in one field (0.1), or in front of the
    /// data (1.0). GNU tar's manual, "Storing Sparse Files".
    fn pax_sparse(&mut self, member: &mut Member) -> io::Result<()> {
        if let Some(map) = member.field("GNU.sparse.map") {
            let numbers: Vec<u64> = map.split(|b| *b == b',').map(number).collect::<io::Result<_>>()?;
            let size = member.number("GNU.sparse.size")?;
            member.pieces = pairs(&numbers)?;
            member.size = size.ok_or_else(|| bad("a sparse file without a size"))?;
        } else if member.number("GNU.sparse.major")? == Some(1) {
            let size = member.number("GNU.sparse.realsize")?;
            let mut read = 0_u64;
            let count = self.map_number(&mut read)?;
            let mut numbers = Vec::new();
            // The budget for headers ends what the count would let grow without end.
            for _ in 0..count.saturating_mul(2) {
                numbers.push(self.map_number(&mut read)?);
            }
            while !read.is_multiple_of(BLOCK as u64) {
                self.map_byte(&mut read)?;
            }
            member.pieces = pairs(&numbers)?;
            member.size = size.ok_or_else(|| bad("a sparse file without a size"))?;
        } else if let Some(size) = member.number("GNU.sparse.size")? {
            member.pieces = repeated_pieces(&member.fields)?;
            member.size = size;
        } else if member.fields.iter().any(|(key, _)| key.starts_with(b"GNU.sparse.")) {
            return Err(bad("a sparse file in a form that this program does not know"));
        }
        Ok(())
    }

    fn map_number(&mut self, read: &mut u64) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.map_byte(read)? {
                b'\n' => return number(&digits),
                _ if digits.len() >= 20 => return Err(bad("a number is too long")),
                digit => digits.push(digit),
            }
        }
    }

    fn map_byte(&mut self, read: &mut u64) -> io::Result<u8> {
        let mut byte = [0];
        self.spend(1)?;
        if self.read_data(&mut byte)? == 0 {
            return Err(bad("the map of a sparse file is cut off"));
        }
        *read += 1;
        Ok(byte[0])
    }

    /// From here on, so many bytes of data come.
    fn expect(&mut self, size: u64) -> io::Result<()> {
        size.checked_add(BLOCK as u64).ok_or_else(|| bad("a size is too large"))?;
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.budget.checked_sub(bytes);
        self.budget = left.ok_or_else(|| bad("the headers of an entry are too long"))?;
        Ok(())
    }

    fn read_headers(&mut self, block: &mut [u8]) -> io::Result<()> {
        self.spend(block.len() as u64)?;
        self.reader.read_exact(block)
    }

    fn read_whole(&mut self) -> io::Result<Vec<u8>> {
        self.spend(self.left)?;
        let mut text = Vec::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.read_data(&mut chunk)? {
                0 => return Ok(text),
                n => text.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let unread = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.reader.by_ref().take(unread), &mut io::sink())?;
        if skipped < unread { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whether a header only says something about the members after it.
fn is_about_another(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
    )
}

fn has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// The sum of all bytes, with those of the sum itself as spaces.
fn check_sum(header: &Header) -> io::Result<()> {
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum();
    if header.cksum()? == sum { Ok(()) } else { Err(bad("the checksum of a header is wrong")) }
}

/// Pieces must follow one another inside of the file, and be exactly what is stored.
fn check_pieces(member: &Member, stored: u64) -> io::Result<()> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for (offset, length) in &member.pieces {
        if *offset < end {
            return Err(bad("the pieces of a sparse file overlap"));
        }
        end = offset.checked_add(*length).ok_or_else(|| bad("a size is too large"))?;
        sum = sum.saturating_add(*length);
    }
    if end > member.size || sum != stored {
        return Err(bad("the pieces of a sparse file do not fit its size"));
    }
    Ok(())
}

fn pairs(numbers: &[u64]) -> io::Result<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad("the map of a sparse file is cut off"));
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// The map of a sparse file whose pieces have two fields each.
fn repeated_pieces(fields: &[(Vec<u8>, Vec<u8>)]) -> io::Result<Vec<(u64, u64)>> {
    let mut numbers = Vec::new();
    for (key, value) in fields {
        // In turn: an offset, then a length.
        let turn: &[u8] =
            if numbers.len().is_multiple_of(2) { b"GNU.sparse.offset" } else { b"GNU.sparse.numbytes" };
        if key == turn {
            numbers.push(number(value)?);
        } else if matches!(key.as_slice(), b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
            return Err(bad("the map of a sparse file is out of order"));
        }
    }
    pairs(&numbers)
}

fn without_final_zeros(mut text: Vec<u8>) -> Vec<u8> {
    while text.last() == Some(&0) {
        text.pop();
    }
    text
}

fn number(digits: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| bad("a number in a header is none"))
}

fn field<'f>(fields: &'f [(Vec<u8>, Vec<u8>)], key: &str) -> Option<&'f [u8]> {
    // The last of several counts.
    fields.iter().rfind(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
}

fn number_field(fields: &[(Vec<u8>, Vec<u8>)], key: &str) -> io::Result<Option<u64>> {
    field(fields, key).map(number).transpose()
}

/// Takes a PAX header apart: records of `length key=value` and a newline, where the length counts the whole record.
fn parse_fields(mut text: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let malformed = || bad("a PAX header is malformed");
    let mut fields = Vec::new();
    while !text.is_empty() {
        let space = text.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(number(&text[..space])?).map_err(|_| malformed())?;
        if length > text.len() || length <= space + 1 || text[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &text[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
        fields.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        text = &text[length..];
    }
    Ok(fields)
}
