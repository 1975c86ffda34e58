//! A reader of the MessagePack in MinIO's metadata: one value after the other from a slice, never beyond its
//! end.

/// One value. Arrays and maps are heads with a count; their values follow.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Nil,
    Uint(u64),
    Int(i64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Array(u32),
    Map(u32),
    /// A boolean, a float or an extension, none of which the metadata needs.
    Other,
}

/// A reader of values from the start of a slice. A malformed, short or differently typed value gives nothing.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn value(&mut self) -> Option<Value<'a>> {
        let tag = self.byte()?;
        Some(match tag {
            0x00..=0x7f => Value::Uint(tag.into()),
            0x80..=0x8f => Value::Map((tag & 0x0f).into()),
            0x90..=0x9f => Value::Array((tag & 0x0f).into()),
            0xa0..=0xbf => Value::Str(self.take((tag & 0x1f).into())?),
            0xc0 => Value::Nil,
            // 0xc1 is the only tag that MessagePack never uses.
            0xc1 => return None,
            0xc2 | 0xc3 => Value::Other,
            0xc4..=0xc6 => Value::Bin(self.run(1 << (tag - 0xc4))?),
            0xc7..=0xc9 => {
                let length = self.length(1 << (tag - 0xc7))?;
                self.other(length.checked_add(1)?)?
            }
            0xca => self.other(4)?,
            0xcb => self.other(8)?,
            0xcc..=0xcf => Value::Uint(self.number(1 << (tag - 0xcc))?),
            0xd0..=0xd3 => Value::Int(self.signed(1 << (tag - 0xd0))?),
            0xd4..=0xd8 => self.other(1 + (1 << (tag - 0xd4)))?,
            0xd9..=0xdb => Value::Str(self.run(1 << (tag - 0xd9))?),
            0xdc | 0xdd => Value::Array(self.count(2 << (tag - 0xdc))?),
            0xde | 0xdf => Value::Map(self.count(2 << (tag - 0xde))?),
            0xe0..=0xff => Value::Int((tag as i8).into()),
        })
    }

    /// Skips one value with the values inside. Counting instead of recursion makes any depth of nesting safe.
    pub(super) fn skip(&mut self) -> Option<()> {
        let mut left: u64 = 1;
        while left > 0 {
            left -= 1;
            match self.value()? {
                Value::Array(count) => left = left.checked_add(count.into())?,
                Value::Map(count) => left = left.checked_add(u64::from(count) * 2)?,
                _ => {}
            }
        }
        Some(())
    }

    pub(super) fn uint(&mut self) -> Option<u64> {
        match self.value()? {
            Value::Uint(number) => Some(number),
            Value::Int(number) => number.try_into().ok(),
            _ => None,
        }
    }

    pub(super) fn int(&mut self) -> Option<i64> {
        match self.value()? {
            Value::Uint(number) => number.try_into().ok(),
            Value::Int(number) => Some(number),
            _ => None,
        }
    }

    /// The bytes of a str or bin, because Go writes either; nil is empty.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        match self.value()? {
            Value::Str(bytes) | Value::Bin(bytes) => Some(bytes),
            Value::Nil => Some(&[]),
            _ => None,
        }
    }

    /// The number of pairs that follow; 0 for nil.
    pub(super) fn map(&mut self) -> Option<u32> {
        match self.value()? {
            Value::Map(count) => Some(count),
            Value::Nil => Some(0),
            _ => None,
        }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn other(&mut self, count: usize) -> Option<Value<'a>> {
        self.take(count).map(|_| Value::Other)
    }

    /// The bytes after a length of `width` bytes.
    fn run(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.length(width)?;
        self.take(length)
    }

    fn length(&mut self, width: usize) -> Option<usize> {
        self.number(width)?.try_into().ok()
    }

    fn count(&mut self, width: usize) -> Option<u32> {
        self.number(width)?.try_into().ok()
    }

    /// A big-endian number of 1, 2, 4 or 8 bytes.
    fn number(&mut self, width: usize) -> Option<u64> {
        Some(self.take(width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, width: usize) -> Option<i64> {
        let unused = 64 - 8 * width;
        Some(((self.number(width)? << unused) as i64) >> unused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(bytes: &[u8]) -> Option<Value<'_>> {
        Reader::new(bytes).value()
    }

    #[test]
    fn every_form_is_read() {
        for (bytes, wanted) in [
            (&b"\x7f"[..], Value::Uint(127)),
            (b"\xcd\x01\x00", Value::Uint(256)),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", Value::Uint(u64::MAX)),
            (b"\xff", Value::Int(-1)),
            (b"\xd0\x80", Value::Int(-128)),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", Value::Int(i64::MIN)),
            (b"\xa2ab", Value::Str(b"ab")),
            (b"\xd9\x02ab", Value::Str(b"ab")),
            (b"\xc5\x00\x02ab", Value::Bin(b"ab")),
            (b"\x93", Value::Array(3)),
            (b"\xdc\x01\x00", Value::Array(256)),
            (b"\xdf\x00\x00\x00\x01", Value::Map(1)),
            (b"\xc0", Value::Nil),
            (b"\xc3", Value::Other),
            (b"\xca\0\0\0\0", Value::Other),
            (b"\xd6\x01abcd", Value::Other),
            (b"\xc7\x02\x01ab", Value::Other),
        ] {
            assert_eq!(value(bytes), Some(wanted), "{bytes:x?}");
            for end in 0..bytes.len() {
                assert_eq!(value(&bytes[..end]), None, "{bytes:x?} cut at {end}");
            }
        }
        assert_eq!(value(b"\xc1"), None);
    }

    #[test]
    fn nesting_of_any_depth_is_passed_over() {
        let mut bytes = vec![0x91; 1_000_000];
        bytes.push(0xc0);
        bytes.push(7);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.skip(), Some(()));
        assert_eq!(reader.uint(), Some(7));
        assert_eq!(Reader::new(b"\xdf\xff\xff\xff\xff").skip(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while reader.skip().is_some() {}
            let mut reader = Reader::new(&bytes);
            while reader.value().is_some() {}
        }
    }
}
