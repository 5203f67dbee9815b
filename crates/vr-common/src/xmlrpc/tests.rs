//! Tests of [`super`].

use proptest::prelude::*;

use super::*;

/// Anything XML-RPC carries unchanged: no control characters, which become U+FFFD.
fn any_value() -> impl Strategy<Value = Value> {
    let text = "[\t\n\r -~\u{a0}-\u{d7ff}\u{10000}-\u{10ffff}]{0,12}";
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Boolean),
        any::<i32>().prop_map(Value::Int),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::Double),
        text.prop_map(Value::String),
        Just(Value::DateTime("20121219T06:19:46".into())),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Base64),
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::btree_map(text, inner, 0..6).prop_map(Value::Struct),
        ]
    })
}

proptest! {
    #[test]
    fn values_survive_the_round_trip(value in any_value(), method in "[a-zA-Z.]{1,20}") {
        let response = write_response(&value).unwrap();
        prop_assert_eq!(read_response(response.as_bytes()).unwrap().unwrap(), value.clone());
        let call = write_call(&method, &[value.clone(), Value::Nil]).unwrap();
        prop_assert_eq!(read_call(call.as_bytes()).unwrap(), Call { method, params: vec![value, Value::Nil] });
    }

    #[test]
    fn faults_survive_the_round_trip(code in any::<i32>(), message in "[ -~\n\r]{0,40}") {
        let fault = Fault { code, message };
        prop_assert_eq!(read_response(write_fault(&fault).as_bytes()).unwrap().unwrap_err(), fault);
    }

    /// Damage anywhere is an answer or an error, never a panic and never a hang.
    #[test]
    fn damaged_documents_are_answered(value in any_value(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut document = write_response(&value).unwrap().into_bytes();
        let at = at.index(document.len());
        document[at] = byte;
        let _ = read_response(&document);
        let _ = read_response(&document[..at]);
        let _ = read_call(&document);
    }
}

fn response(value: &str) -> String {
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n{value}\n</param>\n</params>\n</methodResponse>\n"
    )
}

fn read(value: &str) -> Result<Value, XmlRpcError> {
    read_response(response(value).as_bytes()).map(Result::unwrap)
}

#[test]
fn what_pythons_library_writes_is_read() {
    let members = "<value><struct>\n<member>\n<name>state</name>\n<value><int>20</int></value>\n</member>\n\
                   <member>\n<name>now</name>\n<value><nil/></value></member>\n</struct></value>";
    let expected = BTreeMap::from([("state".to_owned(), Value::Int(20)), ("now".to_owned(), Value::Nil)]);
    assert_eq!(read(members), Ok(Value::Struct(expected)));
    for (text, expected) in [
        ("<value>plain &lt;&#65;&#x42;<![CDATA[&]]></value>", Value::from("plain <AB&")),
        ("<value></value>", Value::from("")),
        ("<value/>", Value::from("")),
        ("<value><string/></value>", Value::from("")),
        ("<value> <i4> -7 </i4> </value>", Value::Int(-7)),
        ("<value><ex:nil xmlns:ex='x'/></value>", Value::Nil),
        ("<value><base64>\nAAE\n=\n</base64></value>", Value::Base64(vec![0, 1])),
        ("<value><array><data>\n</data></array></value>", Value::Array(vec![])),
        ("<value><string>a\r\nb<!-- no -->c</string></value>", Value::from("a\nbc")),
    ] {
        assert_eq!(read(text), Ok(expected), "{text}");
    }
}

#[test]
fn calls_may_leave_out_empty_params() {
    let call = read_call(b"<methodCall><methodName> system.listMethods </methodName></methodCall>").unwrap();
    assert_eq!(call, Call { method: "system.listMethods".into(), params: vec![] });
}

#[test]
fn integers_have_32_bits() {
    assert_eq!(read("<value><int>2147483647</int></value>"), Ok(Value::Int(i32::MAX)));
    let error = read("<value><int>2147483648</int></value>").unwrap_err().to_string();
    assert!(error.ends_with("expected an integer of at most 32 bits, found \"2147483648\""), "{error}");

    let json = serde_json::json!({"limits": [1, 4_294_967_296_u64]});
    let error = Value::from_json("config", &json).unwrap_err().to_string();
    assert_eq!(
        error,
        "config.limits[1]: 4294967296 cannot be carried by XML-RPC, whose integers go from -2147483648 to 2147483647"
    );
    let json = serde_json::json!({"a": [1, -2.5, null, true, "x"]});
    assert_eq!(Value::from_json("config", &json).unwrap().into_json(), json);
}

#[test]
fn yaml_is_carried_with_its_types_and_what_is_not_is_named() {
    let from_yaml = |text: &str| {
        let yaml: serde_yaml::Value = crate::yaml::parse("x", text).unwrap();
        Value::from_yaml("proc.yaml", &yaml)
    };
    let value =
        from_yaml("port: 5000\nenv: {A: '1', B: null}\nvolumes: [[/a, /b]]\nratio: 0.5\nup: true\n").unwrap();
    let expected = serde_json::json!({
        "port": 5000, "env": {"A": "1", "B": null}, "volumes": [["/a", "/b"]], "ratio": 0.5, "up": true
    });
    assert_eq!(value.into_json(), expected);
    for (text, expected) in [
        (
            "mem: [1, 4294967296]",
            "proc.yaml.mem[1]: 4294967296 cannot be carried by XML-RPC, whose integers go from ",
        ),
        ("a: {1: 2}", "proc.yaml.a: a key that is "),
        ("a: .inf", "proc.yaml.a: "),
    ] {
        let error = from_yaml(text).unwrap_err().to_string();
        assert!(error.starts_with(expected) && error.contains("cannot be carried by XML-RPC"), "{error}");
    }
}

#[test]
fn control_characters_are_replaced_and_endless_numbers_refused() {
    let written = write_response(&Value::from("\x1b[1mred\0")).unwrap();
    assert_eq!(read_response(written.as_bytes()).unwrap().unwrap(), Value::from("\u{fffd}[1mred\u{fffd}"));
    assert!(matches!(write_response(&Value::Double(f64::NAN)), Err(XmlRpcError::NotCarried { .. })));
}

#[test]
fn bad_documents_are_refused_and_told_why() {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><methodResponse/>";
    for (document, expected) in [
        (String::new(), "it ends in the middle"),
        ("hello".to_owned(), "text where an element was expected"),
        ("<html><body/></html>".to_owned(), "expected <methodResponse>, found <html>"),
        (bomb.to_owned(), "it has a document type"),
        (response("<value>&a;</value>"), "an unknown reference \"a\""),
        (response("<value><int>x</int></value>"), "found \"x\""),
        (response("<value><boolean>2</boolean></value>"), "a boolean, 0 or 1"),
        (response("<value><double>inf</double></value>"), "a finite number"),
        (response("<value><base64>%</base64></value>"), "expected base64"),
        (response("<value><long>1</long></value>"), "the unknown type \"long\""),
        (response("<value>1<int>1</int></value>"), "text before a value's type"),
        (response("<value><int>1</int><int>1</int></value>"), "one <int> too many"),
        (response("<value><int>1</value></int>"), "expected"),
        (response("<value><int>1</int></value>") + "<more/>", "something follows its end"),
        (response("<value><int>1</int></value>").replace("</methodResponse>", ""), "it ends in the middle"),
        ("<?xml version='1.0' encoding='latin-1'?><methodResponse/>".to_owned(), "its encoding is not UTF-8"),
    ] {
        let error = read_response(document.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{document}: {error}");
    }
    assert!(
        read_response(b"<methodResponse>\xff").unwrap_err().to_string().contains("byte 16: it is not UTF-8")
    );
}

#[test]
fn too_much_is_refused() {
    let deep = |n: usize| "<value><array><data>".repeat(n) + &"</data></array></value>".repeat(n);
    assert!(read(&deep(MAX_DEPTH + 1)).is_ok());
    let error = read(&deep(MAX_DEPTH + 2)).unwrap_err().to_string();
    assert!(error.contains("nested more than 32 deep"), "{error}");

    let wide = |n: usize| format!("<value><array><data>{}</data></array></value>", "<value/>".repeat(n));
    assert!(read(&wide(MAX_VALUES - 1)).is_ok());
    assert!(read(&wide(MAX_VALUES)).unwrap_err().to_string().contains("more than 250000 values"));

    let long = response(&format!("<value>{}</value>", "x".repeat(MAX_DOCUMENT)));
    assert_eq!(read_response(long.as_bytes()), Err(XmlRpcError::TooLong { length: long.len() }));
}
