//! Reads XML-RPC documents, which come from outside: every bound is checked here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_xml::events::{BytesRef, Event};
use quick_xml::reader::Reader;

use super::{Call, Fault, MAX_DEPTH, MAX_DOCUMENT, MAX_VALUES, Value, XmlRpcError};

/// Reads a call.
///
/// # Errors
/// [`XmlRpcError::TooLong`], [`XmlRpcError::Malformed`].
pub fn read_call(document: &[u8]) -> Result<Call, XmlRpcError> {
    let mut source = Source::new(document)?;
    source.open("methodCall")?;
    source.open("methodName")?;
    let method = source.text()?.trim().to_owned();
    let mut params = Vec::new();
    if let Some(name) = source.open_or_close()? {
        source.is(&name, "params")?;
        while let Some(name) = source.open_or_close()? {
            source.is(&name, "param")?;
            source.open("value")?;
            params.push(source.value(0)?);
            source.close()?;
        }
        source.close()?;
    }
    source.end()?;
    Ok(Call { method, params })
}

/// Reads an answer: what the method gave, or its refusal.
///
/// # Errors
/// [`XmlRpcError::TooLong`], [`XmlRpcError::Malformed`].
pub fn read_response(document: &[u8]) -> Result<Result<Value, Fault>, XmlRpcError> {
    let mut source = Source::new(document)?;
    source.open("methodResponse")?;
    let kind = source.opened()?;
    let answer = if kind == "fault" {
        source.open("value")?;
        let fault = source.value(0)?;
        Err(source.fault(fault)?)
    } else {
        source.is(&kind, "params")?;
        source.open("param")?;
        source.open("value")?;
        let result = source.value(0)?;
        source.close()?;
        Ok(result)
    };
    source.close()?;
    source.close()?;
    source.end()?;
    Ok(answer)
}

enum Token<'a> {
    Open(String),
    Close,
    Text(Cow<'a, str>),
    End,
}

/// The document as tokens. The XML reader checks that every element is closed under its own name, so that
/// [`Token::Close`] need not say which.
struct Source<'a> {
    xml: Reader<&'a [u8]>,
    values: usize,
}

impl<'a> Source<'a> {
    fn new(document: &'a [u8]) -> Result<Self, XmlRpcError> {
        if document.len() > MAX_DOCUMENT {
            return Err(XmlRpcError::TooLong { length: document.len() });
        }
        let text = std::str::from_utf8(document).map_err(|e| XmlRpcError::Malformed {
            position: e.valid_up_to() as u64,
            problem: "it is not UTF-8".into(),
        })?;
        let mut xml = Reader::from_str(text);
        xml.config_mut().expand_empty_elements = true;
        Ok(Self { xml, values: 0 })
    }

    fn malformed(&self, problem: impl Into<String>) -> XmlRpcError {
        XmlRpcError::Malformed { position: self.xml.buffer_position(), problem: problem.into() }
    }

    fn next(&mut self) -> Result<Token<'a>, XmlRpcError> {
        loop {
            let event = self.xml.read_event().map_err(|e| self.malformed(e.to_string()))?;
            return Ok(match event {
                Event::Decl(declaration) => {
                    match declaration.encoding() {
                        None => {}
                        Some(Ok(name)) if ["utf-8", "us-ascii"].contains(&&*name.to_lowercase()) => {}
                        Some(_) => return Err(self.malformed("its encoding is not UTF-8")),
                    }
                    continue;
                }
                Event::Comment(_) | Event::PI(_) => continue,
                Event::DocType(_) => return Err(self.malformed("it has a document type")),
                Event::Start(tag) => Token::Open(tag.name().as_ref().to_owned()),
                Event::End(_) => Token::Close,
                Event::Text(text) => Token::Text(text.xml10_content()),
                Event::CData(text) => Token::Text(text.xml10_content()),
                Event::GeneralRef(reference) => Token::Text(self.referred(&reference)?),
                Event::Eof => Token::End,
                Event::Empty(_) => return Err(self.malformed("an element without an end")),
            });
        }
    }

    fn referred(&self, reference: &BytesRef<'_>) -> Result<Cow<'a, str>, XmlRpcError> {
        let character = match &**reference {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            other => match reference.resolve_char_ref() {
                Ok(Some(character)) => character,
                _ => return Err(self.malformed(format!("an unknown reference {:?}", shorten(other)))),
            },
        };
        Ok(Cow::Owned(character.into()))
    }

    /// The next token that is not white space between elements.
    fn next_element(&mut self) -> Result<Token<'a>, XmlRpcError> {
        loop {
            match self.next()? {
                Token::Text(text) if text.trim().is_empty() => {}
                Token::Text(_) => return Err(self.malformed("text where an element was expected")),
                token => return Ok(token),
            }
        }
    }

    /// The name of the element that opens, or nothing where the surrounding one closes.
    fn open_or_close(&mut self) -> Result<Option<String>, XmlRpcError> {
        match self.next_element()? {
            Token::Open(name) => Ok(Some(name)),
            Token::Close => Ok(None),
            Token::Text(_) | Token::End => Err(self.malformed("it ends in the middle")),
        }
    }

    fn opened(&mut self) -> Result<String, XmlRpcError> {
        self.open_or_close()?.ok_or_else(|| self.malformed("an element ends where another was expected"))
    }

    fn open(&mut self, name: &str) -> Result<(), XmlRpcError> {
        let found = self.opened()?;
        self.is(&found, name)
    }

    fn is(&self, found: &str, name: &str) -> Result<(), XmlRpcError> {
        if found == name {
            return Ok(());
        }
        Err(self.malformed(format!("expected <{name}>, found <{}>", shorten(found))))
    }

    fn close(&mut self) -> Result<(), XmlRpcError> {
        match self.open_or_close()? {
            None => Ok(()),
            Some(name) => Err(self.malformed(format!("one <{}> too many", shorten(&name)))),
        }
    }

    fn end(&mut self) -> Result<(), XmlRpcError> {
        match self.next_element()? {
            Token::End => Ok(()),
            _ => Err(self.malformed("something follows its end")),
        }
    }

    /// The text up to the end of the open element.
    fn text(&mut self) -> Result<String, XmlRpcError> {
        let mut text = String::new();
        loop {
            match self.next()? {
                Token::Text(part) => text.push_str(&part),
                Token::Close => return Ok(text),
                Token::Open(_) => return Err(self.malformed("an element where text was expected")),
                Token::End => return Err(self.malformed("it ends in the middle")),
            }
        }
    }

    /// The value whose `<value>` was just opened, up to its end.
    fn value(&mut self, depth: usize) -> Result<Value, XmlRpcError> {
        if depth > MAX_DEPTH {
            return Err(self.malformed(format!("values are nested more than {MAX_DEPTH} deep")));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.malformed(format!("more than {MAX_VALUES} values")));
        }
        // Without a type it is a string.
        let mut untyped = String::new();
        let kind = loop {
            match self.next()? {
                Token::Text(part) => untyped.push_str(&part),
                Token::Close => return Ok(Value::String(untyped)),
                Token::Open(kind) => break kind,
                Token::End => return Err(self.malformed("it ends in the middle")),
            }
        };
        if !untyped.trim().is_empty() {
            return Err(self.malformed("text before a value's type"));
        }
        let value = self.typed(&kind, depth)?;
        self.close()?;
        Ok(value)
    }

    fn typed(&mut self, kind: &str, depth: usize) -> Result<Value, XmlRpcError> {
        match kind {
            "array" => return self.array(depth),
            "struct" => return self.members(depth),
            _ => {}
        }
        let text = self.text()?;
        let bad = |expected: &str| self.malformed(format!("expected {expected}, found {:?}", shorten(&text)));
        Ok(match kind {
            "nil" | "ex:nil" if text.trim().is_empty() => Value::Nil,
            "nil" | "ex:nil" => return Err(bad("an empty nil")),
            "boolean" => match text.trim() {
                "0" => Value::Boolean(false),
                "1" => Value::Boolean(true),
                _ => return Err(bad("a boolean, 0 or 1")),
            },
            "int" | "i4" => {
                Value::Int(text.trim().parse().map_err(|_| bad("an integer of at most 32 bits"))?)
            }
            "double" => match text.trim().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Double(number),
                _ => return Err(bad("a finite number")),
            },
            "base64" => {
                let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                Value::Base64(STANDARD.decode(digits).map_err(|_| bad("base64"))?)
            }
            "string" => Value::String(text),
            "dateTime.iso8601" => Value::DateTime(text),
            other => return Err(self.malformed(format!("a value of the unknown type {:?}", shorten(other)))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, XmlRpcError> {
        self.open("data")?;
        let mut items = Vec::new();
        while let Some(name) = self.open_or_close()? {
            self.is(&name, "value")?;
            items.push(self.value(depth + 1)?);
        }
        self.close()?;
        Ok(Value::Array(items))
    }

    fn members(&mut self, depth: usize) -> Result<Value, XmlRpcError> {
        let mut members = BTreeMap::new();
        while let Some(name) = self.open_or_close()? {
            self.is(&name, "member")?;
            self.open("name")?;
            let key = self.text()?;
            self.open("value")?;
            members.insert(key, self.value(depth + 1)?);
            self.close()?;
        }
        Ok(Value::Struct(members))
    }

    fn fault(&self, value: Value) -> Result<Fault, XmlRpcError> {
        if let Value::Struct(mut members) = value
            && let Some(Value::Int(code)) = members.remove("faultCode")
            && let Some(Value::String(message)) = members.remove("faultString")
        {
            return Ok(Fault { code, message });
        }
        Err(self.malformed("a fault without an int faultCode and a string faultString"))
    }
}

/// Enough of a text for an error message.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}
