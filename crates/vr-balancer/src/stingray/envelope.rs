//! SOAP 1.1 messages in its rpc style with encoded arguments, as far as the Pool interface of Stingray needs them.
//!
//! Answers come from outside: their length, depth and number of elements have bounds, and nothing in them is expanded.

use quick_xml::escape::escape;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::reader::NsReader;

/// The namespace of the operations; with an operation's name behind it, its `SOAPAction`.
pub const POOL: &str = "http://soap.zeus.com/zxtm/1.0/Pool/";
/// That of Stingray's own types.
const TYPES: &str = "http://soap.zeus.com/zxtm/1.0/";
const ENVELOPE: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const ENCODING: &str = "http://schemas.xmlsoap.org/soap/encoding/";
const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const SCHEMA: &str = "http://www.w3.org/2001/XMLSchema";
/// Stingray takes the type of the members of an array of arrays from here.
const SCHEMA_1999: &str = "http://www.w3.org/1999/XMLSchema";

/// The longest answer, in bytes.
pub const LONGEST: usize = 4 << 20;
/// How deep elements may lie in each other.
const DEEPEST: usize = 32;
/// The most elements of an answer.
const MOST: usize = 100_000;

/// An operation of the Pool interface with its arguments in their order.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name.
    pub operation: &'static str,
    arguments: Vec<(&'static str, Argument)>,
}

#[derive(Debug, Clone)]
enum Argument {
    Texts(Vec<String>),
    ListsOfTexts(Vec<Vec<String>>),
}

impl Call {
    /// An operation without arguments.
    pub fn new(operation: &'static str) -> Self {
        Self { operation, arguments: Vec::new() }
    }

    /// One that is about a pool.
    pub fn on_pool(operation: &'static str, pool: &str) -> Self {
        let names = Argument::Texts(vec![pool.to_owned()]);
        Self { operation, arguments: vec![("names", names)] }
    }

    /// With nodes for that pool. The argument's name is the operation's choice.
    pub fn with_nodes(mut self, argument: &'static str, nodes: Vec<String>) -> Self {
        self.arguments.push((argument, Argument::ListsOfTexts(vec![nodes])));
        self
    }

    /// The message.
    pub fn to_xml(&self) -> String {
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
             <soap:Envelope xmlns:soap=\"{ENVELOPE}\" xmlns:enc=\"{ENCODING}\" xmlns:xsi=\"{INSTANCE}\" \
             xmlns:xsd=\"{SCHEMA}\" xmlns:old=\"{SCHEMA_1999}\" xmlns:zxtm=\"{TYPES}\" xmlns:pool=\"{POOL}\" \
             soap:encodingStyle=\"{ENCODING}\"><soap:Header/><soap:Body><pool:{}>",
            self.operation
        );
        for (name, argument) in &self.arguments {
            match argument {
                Argument::Texts(texts) => {
                    let length = texts.len();
                    xml += &format!(
                        "<{name} xsi:type=\"zxtm:StringArray\" enc:arrayType=\"xsd:string[{length}]\">"
                    );
                    push_items(&mut xml, texts);
                }
                Argument::ListsOfTexts(lists) => {
                    let array =
                        |length| format!("xsi:type=\"enc:Array\" enc:arrayType=\"old:list[{length}]\"");
                    xml += &format!("<{name} {}>", array(lists.len()));
                    for list in lists {
                        xml += &format!("<item {}>", array(list.len()));
                        push_items(&mut xml, list);
                        xml += "</item>";
                    }
                }
            }
            xml += &format!("</{name}>");
        }
        xml += &format!("</pool:{}></soap:Body></soap:Envelope>", self.operation);
        xml
    }
}

fn push_items(xml: &mut String, texts: &[String]) {
    for text in texts {
        *xml += &format!("<item xsi:type=\"xsd:string\">{}</item>", escape(text.as_str()));
    }
}

/// What was answered to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done; the members of what it gave, if anything.
    Done(Vec<Item>),
    /// It was refused, in these words.
    Fault(String),
}

/// A member of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A text.
    Text(String),
    /// Another array.
    List(Vec<Item>),
}

/// Reads the answer to an operation. What is wrong with it is said in half a sentence.
pub fn read_answer(operation: &str, document: &[u8]) -> Result<Answer, String> {
    let envelope = read(document)?;
    if !envelope.is(ENVELOPE, "Envelope") {
        return Err(format!("expected a SOAP envelope, found <{}>", envelope.name));
    }
    let body = envelope.children.iter().find(|child| child.is(ENVELOPE, "Body"));
    let Some(content) = body.and_then(|body| body.children.first()) else {
        return Err("the envelope has no body".to_owned());
    };
    if content.is(ENVELOPE, "Fault") {
        let said = content.children.iter().find(|child| child.name == "faultstring");
        let said = said.map(|said| said.text.trim().to_owned()).filter(|said| !said.is_empty());
        return Ok(Answer::Fault(said.unwrap_or_else(|| "a fault without words".to_owned())));
    }
    if !content.is(POOL, &format!("{operation}Response")) {
        return Err(format!("expected <{operation}Response>, found <{}>", content.name));
    }
    let given = content.children.first();
    Ok(Answer::Done(given.map(Element::items).transpose()?.unwrap_or_default()))
}

/// A part of a document.
#[derive(Debug, Default)]
struct Element {
    namespace: Option<String>,
    name: String,
    text: String,
    children: Vec<Element>,
    /// It only says where in the document its content is.
    is_reference: bool,
}

impl Element {
    fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref() == Some(namespace) && self.name == name
    }

    /// Its members, if it is an array. Their names mean nothing in this encoding.
    fn items(&self) -> Result<Vec<Item>, String> {
        if self.is_reference {
            return Err(format!(
                "the content of <{}> is elsewhere (href), expected it in its place",
                self.name
            ));
        }
        let item = |child: &Self| match child.text.trim() {
            // An empty text is no name of anything, so this is an array without members.
            "" => child.items().map(Item::List),
            text if child.children.is_empty() && !child.is_reference => Ok(Item::Text(text.to_owned())),
            _ => Err(format!("<{}> holds both text and elements", child.name)),
        };
        self.children.iter().map(item).collect()
    }

    fn of(namespace: &ResolveResult<'_>, tag: &BytesStart<'_>) -> Result<Self, String> {
        let namespace = match namespace {
            ResolveResult::Bound(Namespace(namespace)) => Some((*namespace).to_owned()),
            ResolveResult::Unbound => None,
            ResolveResult::Unknown(prefix) => {
                return Err(format!("the prefix {:?} has no namespace", shorten(prefix)));
            }
        };
        let name = shorten(tag.local_name().as_ref()).to_owned();
        let mut is_reference = false;
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|error| format!("<{name}>: {error}"))?;
            is_reference |= attribute.key.as_ref() == "href";
        }
        Ok(Self { namespace, name, is_reference, ..Self::default() })
    }
}

fn read(document: &[u8]) -> Result<Element, String> {
    if document.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let text = std::str::from_utf8(document).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut xml = NsReader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    xml.config_mut().expand_empty_elements = true;
    // The elements that are open, with what they hold so far; the document itself is below all of them.
    let mut open = vec![Element::default()];
    let mut count = 0;
    loop {
        let (namespace, event) = xml.read_resolved_event().map_err(|error| error.to_string())?;
        let (depth, Some(inner)) = (open.len(), open.last_mut()) else {
            return Err("an element ends that never began".to_owned());
        };
        match event {
            Event::Start(tag) => {
                count += 1;
                if depth > DEEPEST || count > MOST {
                    return Err(format!(
                        "it has more than {MOST} elements, or they are nested more than {DEEPEST} deep"
                    ));
                }
                open.push(Element::of(&namespace, &tag)?);
            }
            Event::End(_) => {
                let Some(done) = open.pop() else { continue };
                match open.last_mut() {
                    Some(parent) => parent.children.push(done),
                    None => return Err("an element ends that never began".to_owned()),
                }
            }
            Event::Text(text) => inner.text += &text.xml10_content(),
            Event::CData(text) => inner.text += &text.xml10_content(),
            Event::GeneralRef(reference) => inner.text.push(referred(&reference)?),
            Event::DocType(_) => return Err("it has a document type".to_owned()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::Empty(_) => {}
            Event::Eof => break,
        }
    }
    match (open.pop(), open.is_empty()) {
        (Some(mut whole), true) if whole.children.len() == 1 && whole.text.trim().is_empty() => {
            whole.children.pop().ok_or_else(String::new)
        }
        (_, false) => Err("it ends in the middle".to_owned()),
        _ => Err("it is not an XML document".to_owned()),
    }
}

/// One of the five characters that XML itself names, or one by its number. No entity is ever looked up.
fn referred(reference: &BytesRef<'_>) -> Result<char, String> {
    match &**reference {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        other => match reference.resolve_char_ref() {
            Ok(Some(character)) => Ok(character),
            _ => Err(format!("an unknown reference {:?}", shorten(other))),
        },
    }
}

/// Enough of a text for a message.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer's content in an envelope as Stingray writes it.
    fn answer(content: &str) -> Vec<u8> {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<SOAP-ENV:Envelope xmlns:SOAP-ENV=\"{ENVELOPE}\" \
             xmlns:SOAP-ENC=\"{ENCODING}\" xmlns:xsi=\"{INSTANCE}\" xmlns:xsd=\"{SCHEMA_1999}\">\
             <SOAP-ENV:Body>{content}</SOAP-ENV:Body></SOAP-ENV:Envelope>"
        )
        .into_bytes()
    }

    fn nodes(content: &str) -> Result<Answer, String> {
        let list =
            format!("<z:getNodesResponse xmlns:z=\"{POOL}\"><nodes>{content}</nodes></z:getNodesResponse>");
        read_answer("getNodes", &answer(&list))
    }

    fn list(texts: &[&str]) -> Item {
        Item::List(texts.iter().map(|text| Item::Text((*text).to_owned())).collect())
    }

    #[test]
    fn the_recorded_answers_are_understood() {
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/stingray.json")).unwrap();
        let nodes = recorded["responses"]["getNodes"].as_str().unwrap();
        assert_eq!(
            read_answer("getNodes", &answer(nodes)),
            Ok(Answer::Done(vec![list(&["h1:5000", "h2:5001"])]))
        );
        let (done, _) = recorded["responses"]["others"].as_str().unwrap().split_once(' ').unwrap();
        let done = format!("{done} {}", "xmlns:zeusns=\"http://soap.zeus.com/zxtm/1.0/Pool/\"/>");
        assert_eq!(read_answer("addNodes", &answer(&done)), Ok(Answer::Done(Vec::new())));
        let fault = recorded["responses"]["unknown pool"].as_str().unwrap();
        let fault = fault.strip_suffix(", HTTP 500").unwrap();
        assert_eq!(
            read_answer("addNodes", &answer(fault)),
            Ok(Answer::Fault("Unknown pool: vr-newpool".to_owned()))
        );
    }

    #[test]
    fn arrays_without_members_and_odd_characters_are_read() {
        assert_eq!(nodes("<Item/>"), Ok(Answer::Done(vec![list(&[])])));
        assert_eq!(nodes(""), Ok(Answer::Done(Vec::new())));
        assert_eq!(
            nodes("<a><b> h&#49;:1&amp;<![CDATA[<2>]]> </b></a>"),
            Ok(Answer::Done(vec![list(&["h1:1&<2>"])]))
        );
    }

    #[test]
    fn what_is_no_answer_is_refused_with_what_is_wrong() {
        let deep = format!("{}{}", "<i>".repeat(40), "</i>".repeat(40));
        let many = "<i/>".repeat(MOST + 1);
        for (content, part) in [
            ("<i href=\"#1\"/>", "elsewhere"),
            ("<i>&other;</i>", "unknown reference \"other\""),
            ("<x:i/>", "the prefix \"x\" has no namespace"),
            ("<i></j>", "expected `</i>`"),
            (deep.as_str(), "nested more than 32 deep"),
            (many.as_str(), "more than 100000 elements"),
        ] {
            let error = nodes(content).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        for (document, part) in [
            (&b"<html><body/></html>"[..], "expected a SOAP envelope, found <html>"),
            (b"", "not an XML document"),
            (b"no", "not an XML document"),
            (b"<a>", "it ends in the middle"),
            (b"<a/><b/>", "not an XML document"),
            (b"\xff", "it is not UTF-8"),
            (b"<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>", "a document type"),
        ] {
            let error = read_answer("getNodes", document).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(read_answer("getNodes", &answer("")), Err("the envelope has no body".to_owned()));
        let other = answer("<addNodesResponse/>");
        assert!(read_answer("addNodes", &other).unwrap_err().contains("expected <addNodesResponse>"));
        let long = vec![b' '; LONGEST + 1];
        assert!(read_answer("getNodes", &long).unwrap_err().contains("longer than"));
    }

    #[test]
    fn names_are_escaped() {
        let xml = Call::on_pool("getNodes", "a<b&\"c").to_xml();
        assert!(xml.contains(">a&lt;b&amp;&quot;c</item>"), "{xml}");
    }
}
