//! What we write against the real PyYAML, and what we read against what it reads.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value as Json, json};
use serde_yaml::{Mapping, Value};

use super::*;

/// Reads a JSON list of YAML texts; prints, for each loader that there is, a line with the list of what it read.
///
/// JSON has no infinite numbers, no keys but texts, and mixes integers and floats: those are spelled out.
const READER: &str = r"
import json, sys, yaml

def told(value):
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, dict):
        return {'map': [[told(key), told(inner)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        return [told(inner) for inner in value]
    if isinstance(value, int):
        return {'int': str(value)}
    if isinstance(value, float):
        return {'float': 'nan' if value != value else value.hex()}
    return value if isinstance(value, str) else {'other': repr(value)}

def read(text, loader):
    try:
        return told(yaml.load(text, Loader=loader))
    except Exception as error:
        return {'error': str(error)}

texts = json.load(open(sys.argv[1], encoding='utf-8'))
for name in ('SafeLoader', 'CSafeLoader'):
    if hasattr(yaml, name):
        print(json.dumps([read(text, getattr(yaml, name)) for text in texts]))
";

fn python(program: &str, argument: &Path) -> String {
    // Debian's own, whatever else is in the path: it finds Debian's package.
    let mut python = crate::process::command("/usr/bin/python3");
    python.args(["-I", "-c", program]).arg(argument).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = python.output().expect("the tests need Debian's python3");
    assert!(output.status.success(), "it failed; the tests need Debian's python3-yaml");
    String::from_utf8(output.stdout).unwrap()
}

/// What PyYAML makes of each text; one list for each of its loaders.
fn read_by_python(texts: &[String]) -> Vec<Vec<Json>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&serde_json::to_vec(texts).unwrap()).unwrap();
    let lists: Vec<Vec<Json>> =
        python(READER, file.path()).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lists.is_empty() && lists.iter().all(|list| list.len() == texts.len()));
    lists
}

/// Python's `float.hex`, for doubles that are not NaN.
fn hex(float: f64) -> String {
    let bits = float.to_bits();
    let sign = if float.is_sign_negative() { "-" } else { "" };
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i64, bits & ((1 << 52) - 1));
    match (exponent, fraction) {
        (0x7ff, _) => format!("{sign}inf"),
        (0, 0) => format!("{sign}0x0.0p+0"),
        (0, _) => format!("{sign}0x0.{fraction:013x}p-1022"),
        _ => format!("{sign}0x1.{fraction:013x}p{:+}", exponent - 1023),
    }
}

/// The same as the Python program tells it.
fn told(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(truth) => json!(truth),
        Value::Number(number) if number.is_f64() => match number.as_f64().unwrap() {
            float if float.is_nan() => json!({"float": "nan"}),
            float => json!({"float": hex(float)}),
        },
        Value::Number(number) => json!({"int": number.to_string()}),
        Value::String(text) => json!(text),
        Value::Sequence(items) => items.iter().map(told).collect(),
        Value::Mapping(mapping) => {
            json!({"map": mapping.iter().map(|(k, v)| json!([told(k), told(v)])).collect::<Vec<_>>()})
        }
        Value::Tagged(tagged) => panic!("{tagged:?}"),
    }
}

/// Every value reads back as it was: by Python's loaders, by our own reader, and by YAML 1.2.
fn assert_all_survive(values: &[Value]) {
    let texts: Vec<_> = values.iter().map(|value| to_string(value).unwrap()).collect();
    for list in read_by_python(&texts) {
        for ((value, text), read) in values.iter().zip(&texts).zip(list) {
            assert_eq!(read, told(value), "as Python reads:\n{text}");
        }
    }
    for (value, text) in values.iter().zip(&texts) {
        // Through the comparable form, as NaN is no equal of its own.
        assert_eq!(told(&parse_value("again", text).unwrap()), told(value), "as we read:\n{text}");
        assert_eq!(told(&parse("again", text).unwrap()), told(value), "as YAML 1.2 reads:\n{text}");
        assert!(text.ends_with('\n') && !text.starts_with('\n'), "{text:?}");
    }
}

fn tricky_texts() -> Vec<String> {
    let words = "yes no on off y n true false null none Yes NO On OFF True FALSE Null NULL Y N ~ = << - ? : , . .. ... \
        --- -- | > | ! !x !!str & &x * *x % %x @ @x ` # { } [ ] [] {} \" ' \\ / \
        0 00 0755 -0755 +0755 08 0o17 0O17 0b1 0b_1 0b 0x1f 0X1F 0x_ 0x -0x1F +12 -12 1_000 1__ 1,000 _1 12: :12 \
        1e3 1E3 1e+3 1.e3 1.0e3 1.5e3 1.5e+3 1.5E-3 .5 -.5 +.5 5. ._5 . 1.2.3 127.0.0.1 1e 1e+ e5 7e12345678 12e3456 \
        0.1 1_0.5 inf nan Infinity -Infinity NaN .inf .Inf -.INF +.inf .nan .NaN .NAN -.nan 12:30 12:30:00 \
        190:20:30 190:20:30.15 -1:30 0:30 1:60 22:80 10:20 1:2:3. 1:0.5_ 2001-12-14 2001-1-1 20011214 2001-12 \
        2001-12-14t21:59:43.10-05:00 2001-12-14T21:59:43Z 99999999999999999999 0x1ffffffffffffffff \
        key:value a:b http://x/y#z a#b a,b a[b] {a} [a] v1.0 -x --flag -1x .x .profile ~/x $HOME $(x) (x) +x ;x ^x <x \
        !!python/object &a*b *a&b 'a' \"a\" a'b a\"b '' \"\" \u{e9} \u{e9}t\u{e9} \u{2603} \u{4e2d}\u{6587}";
    let mut texts: Vec<String> = words.split(' ').map(str::to_owned).collect();
    for text in [
        "",
        " ",
        "  ",
        "\t",
        "\n",
        "\n\n",
        " \n",
        "\n ",
        "\r",
        "\r\n",
        "a\rb",
        "a\r\nb",
        " a",
        "a ",
        "\ta",
        "a\t",
        "a\tb",
        "a  b",
        "- x",
        "-\tx",
        "? x",
        ": x",
        "a: b",
        "a:\tb",
        "a :b",
        "a : b",
        "a:",
        "a #b",
        "a\t#b",
        "#",
        "# a",
        "a: ",
        "%YAML 1.1",
        "--- a",
        "... a",
        "@How's it going?",
        "\"@How's it going?\"",
        "'",
        "''",
        "it's",
        "\\n",
        "\\",
        "a\\b",
        "{a: b}",
        "[a, b]",
        "!x y",
        "&x y",
        "*x y",
        "2001-12-14 21:59:43.10 -5",
        "2001-12-14 21:59:43",
        "a\nb",
        "a\nb\n",
        "a\nb\n\n",
        "a\n\nb",
        "a\n \nb",
        "a\n  b\n c",
        "\na",
        " a\nb",
        "\ta\nb",
        "a\n\tb",
        "a \nb ",
        "a\n#b\n",
        "# a\nb",
        "a: b\nc: d\n",
        "---\na\n...\n",
        "- a\n- b",
        "|\n a",
        "a\nb\u{2028}c",
        "a\nb\u{85}",
        "\u{85}",
        "\u{2028}",
        "\u{2029}",
        "\u{feff}",
        "\u{feff}a",
        "a\u{feff}",
        "\u{0}",
        "a\u{0}b",
        "\u{1}\u{1f}\u{7f}\u{80}\u{9f}",
        "\u{a0}",
        "\u{a0}a\u{a0}",
        "\u{3000}",
        "a\u{85}b",
        "\u{fffe}\u{ffff}",
        "\u{fffd}",
        "\u{d7ff}\u{e000}",
        "\u{1f600}",
        "a \u{1f600} b",
        "\u{1f468}\u{200d}\u{1f469}",
        "\u{10ffff}",
        "\u{10000}\n\u{10000}",
        "\u{1b}[31mred\u{1b}[0m",
        "e\u{301}",
        "\u{202e}abc",
    ] {
        texts.push(text.to_owned());
    }
    texts.push("long ".repeat(500));
    texts.push("x".repeat(5_000));
    texts.push(format!("{}\n", "a long line of a script ".repeat(100)));
    texts.push("line\n".repeat(300));
    texts.push("\u{1f600}".repeat(300));
    texts.push("it's ".repeat(40));
    texts
}

#[test]
fn every_text_stays_a_text_wherever_it_stands() {
    let mut values = Vec::new();
    for text in tricky_texts() {
        let text = Value::from(text);
        let mapping = |key: &Value, value: &Value| {
            Value::Mapping(Mapping::from_iter([(key.clone(), value.clone()), ("last".into(), 1.into())]))
        };
        values.push(mapping(&"key".into(), &text));
        values.push(mapping(&text, &"value".into()));
        values.push(mapping(&text, &mapping(&text, &Value::Sequence(vec![text.clone(), text.clone()]))));
        let lists =
            Value::Sequence(vec![text.clone(), mapping(&text, &text), Value::Sequence(vec![text.clone()])]);
        values.push(mapping(&"lists".into(), &lists));
        values.push(lists);
        values.push(text);
    }
    assert_all_survive(&values);
}

#[test]
fn numbers_keep_their_kind_and_every_bit() {
    let floats = [
        0.0,
        -0.0,
        1.0,
        1000.0,
        0.1,
        -2.5,
        1e3,
        1e15,
        1e16,
        1e22,
        1e100,
        -1.5e300,
        1e-5,
        1e-7,
        5e-324,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::EPSILON,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let mut values: Vec<_> = floats.into_iter().map(Value::from).collect();
    values.extend([0, 1, -1, i64::MAX, i64::MIN, 8, 10, 755].map(Value::from));
    values.extend([Value::from(u64::MAX), true.into(), false.into(), Value::Null]);
    // To Python, 1 and True are the same key.
    let keys = values.iter().filter(|value| !value.is_f64() && !value.is_bool());
    values.push(Value::Mapping(keys.map(|value| (value.clone(), value.clone())).collect()));
    values.push(Value::Mapping(Mapping::new()));
    values.push(Value::Sequence(values.clone()));
    assert_all_survive(&values);
    assert_eq!(to_string(&1e100).unwrap(), "1.0e+100\n");
    assert_eq!(to_string(&1000.0).unwrap(), "1000.0\n");
}

#[test]
fn python_reads_keys_that_are_no_simple_ones() {
    // Only lists of plain values can be keys in Python, and those come as tuples there.
    let text = to_string(&Value::Mapping(Mapping::from_iter([
        (Value::from("k".repeat(2_000)), Value::from("v")),
        (
            Value::from("k ".repeat(600) + "\nl"),
            Value::Sequence(vec![1.into(), Value::Mapping(Mapping::new())]),
        ),
        (Value::from("\u{1f600}".repeat(200)), Value::Mapping(Mapping::from_iter([(1.into(), 2.into())]))),
    ])))
    .unwrap();
    let expected = told(&parse_value("again", &text).unwrap());
    for list in read_by_python(&[text]) {
        assert_eq!(list, std::slice::from_ref(&expected));
    }
    let odd =
        "? [a, 'yes']\n: 1\n? {b: 'no'}\n: - x\n  - y: z\n? !t k\n: !t {c: [d]}\n? null\n: ~\ne: !t [f]\n";
    let value = parse_value("odd", odd).unwrap();
    assert_eq!(parse_value("again", &to_string(&value).unwrap()).unwrap(), value);
}

#[test]
fn what_we_write_is_fit_for_people() {
    let value = json!({
        "url": "http://x/y?a=1&b=2#c", "quote": "@How's it going?", "mode": "0755", "script": "#!/bin/sh\n\nexec x\n",
        "cert": "-----BEGIN\nabc\n-----END", "list": ["a b", {"c": 1, "d": [true]}], "empty": [{}, []], "version": "v1.2",
    });
    assert_eq!(
        to_string(&value).unwrap(),
        "cert: |-
  -----BEGIN
  abc
  -----END
empty:
- {}
- []
list:
- a b
- c: 1
  d:
  - true
mode: '0755'
quote: '@How''s it going?'
script: |
  #!/bin/sh

  exec x
url: http://x/y?a=1&b=2#c
version: v1.2
"
    );
}

#[test]
fn tags_survive_and_stay_on_their_values() {
    let text = "a: !secret x\nb: !list\n  - 1\nc: !map\n  d: e\nf:\n- !g h\n- !i\n  j: k\n";
    let value = parse_value("tags", text).unwrap();
    assert_eq!(to_string(&value).unwrap(), text);
    let odd = parse_value("tags", "a: !a%20b%21 c").unwrap();
    assert_eq!(parse_value("again", &to_string(&odd).unwrap()).unwrap(), odd);
}

/// The published suite is made of Python: what it makes of a file is what the file means.
#[test]
fn bare_words_mean_what_they_mean_to_python() {
    let dates = |text: &str| text.starts_with("2001-") && text.len() > 7;
    let mut documents: Vec<String> = tricky_texts()
        .into_iter()
        // Python refuses a bare `=`; sizes of integers are ours.
        .filter(|text| text.len() < 100 && text != "=" && !dates(text) && !text.contains("99999999"))
        .filter(|text| !text.contains("0x1fffff") && text != "0b_" && text != "0x_")
        .flat_map(|text| {
            let quoted = text.replace('\'', "''");
            [
                format!("{text}\n"),
                format!("a: {text}\n"),
                format!("a: [{text}, '{quoted}', x]\n"),
                format!("{text}: 1\n"),
            ]
        })
        .collect();
    for document in [
        "a: !!str yes",
        "a: !!str &b yes\nc: *b",
        "a: &b yes\nc: *b",
        "a: &b !!str yes\nc: *b",
        "[!!str yes, !!str 'no', yes, 'no', \"on\", {off: on}]",
        "{a: yes, b: 'yes', \"c\":yes, d: [0755]}",
        "a: \"\\\n  yes\"",
        "a: 'yes\n  no'",
        "a: yes\n  no",
        "a: |\n  yes\nb: >-\n  yes\nc: |-\n  0755",
        "a: \"y\\x65s\"",
        "\u{feff}a: yes",
        "\u{e9}\u{2603}: yes\nb: '\u{1f4}'\nc: 0755",
        "a: yes # 'no'\nb: yes   \nc: yes",
        "a: yes\r\nb: 0755\r\n",
        "--- yes",
        "--- yes\n...\n",
        "- yes\n- - no\n  - ? on\n    : off",
        "!x: yes",
        "base: &base {a: 1, b: 2}\nc:\n  <<: *base\n  b: 3\nd:\n  '<<': 4",
        "a: {<<: [{x: 1}, {x: 2, y: 3}], y: 4}",
        "a: !!int '3'\nb: !!float 3\nc: !!bool yes\nd: !!null ''",
        "a:\nb: ~\nc: ''",
        "",
        "# nothing",
    ] {
        documents.push(document.to_owned());
    }
    let lists = read_by_python(&documents);
    let mut compared = 0;
    for (at, document) in documents.iter().enumerate() {
        for list in &lists {
            // What one of us refuses is another test's matter.
            if let (None, Ok(ours)) = (list[at].get("error"), parse_value("x", document)) {
                let is_tagged = format!("{ours:?}").contains("TaggedValue");
                if !is_tagged {
                    assert_eq!(told(&ours), list[at], "{document:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > documents.len(), "only {compared} readings of {} could be compared", documents.len());
}

/// All short words of what numbers are made of: what Python makes of them bare, and which of them we write bare.
#[test]
fn every_short_word_is_resolved_as_python_does() {
    const LONGEST: u32 = 3;
    let letters = ["0", "1", "7", "9", "_", ".", ":", "e", "E", "+", "-", "x", "b", "o", "f", ",", "y", "n"];
    let words: Vec<String> = (1..=LONGEST)
        .flat_map(|length| 0..letters.len().pow(length))
        .zip((1..=LONGEST).flat_map(|length| vec![length; letters.len().pow(length)]))
        .map(|(number, length)| {
            (0..length).map(|at| letters[number / letters.len().pow(at) % letters.len()]).collect()
        })
        .collect();
    // One document for many words, unless a word is no word or no number although it looks like one.
    let (odd, even): (Vec<_>, Vec<_>) = words.iter().partition(|word| {
        word.ends_with(':') || word.starts_with([':', '-', ',']) || word.contains("b_") || word.contains("x_")
    });
    let bare = even.iter().map(|word| format!("- {word}\n")).collect::<String>();
    let documents: Vec<_> =
        std::iter::once(bare).chain(odd.iter().map(|word| format!("- {word}\n"))).collect();
    for list in read_by_python(&documents) {
        assert_eq!(list[0].as_array().map(Vec::len), Some(even.len()), "{}", list[0]);
        for (document, read) in documents.iter().zip(list) {
            if let (None, Ok(ours)) = (read.get("error"), parse_value("x", document)) {
                let (ours, read) = (told(&ours), read.as_array().unwrap().clone());
                for (at, (ours, read)) in ours.as_array().unwrap().iter().zip(read).enumerate() {
                    assert_eq!(*ours, read, "number {at} of {} bytes", document.len());
                }
            }
        }
    }
    assert!(parse_value("x", &documents[0]).is_ok());
    assert_all_survive(&[Value::Sequence(words.into_iter().map(Value::from).collect())]);
}

/// What PyYAML writes, we read as it was; also texts that only YAML 1.2 takes for something else.
#[test]
fn what_python_writes_is_read_as_it_was() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let texts = tricky_texts();
    file.write_all(&serde_json::to_vec(&texts).unwrap()).unwrap();
    let program = "import json, sys, yaml
texts = json.load(open(sys.argv[1], encoding='utf-8'))
def form(text, how):
    value = {'list': [text], text: text, 'float': 1e100, 'int': 10**18, 'on': True, 'none': None}
    written = yaml.safe_dump(value, **how)
    # It does not always understand itself.
    return written if yaml.safe_load(written) == value else None
forms = [form(text, how)
    for text in texts for how in ({}, {'default_flow_style': True}, {'allow_unicode': True, 'width': 20})]
json.dump(forms, open(sys.argv[1], 'w'))";
    python(program, file.path());
    let forms: Vec<Option<String>> = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(forms.len(), texts.len() * 3);
    assert!(forms.iter().flatten().count() > texts.len() * 5 / 2);
    for (form, text) in forms.iter().zip(texts.iter().flat_map(|text| [text; 3])) {
        let Some(form) = form else { continue };
        let expected = json!({"list": [text], text: text, "float": 1e100, "int": 10_i64.pow(18), "on": true, "none": null});
        let read =
            serde_json::to_value(parse_mapping("x", form).unwrap_or_else(|e| panic!("{e}\n{form}"))).unwrap();
        let expected = match text.as_str() {
            "on" => json!({"list": [text], "float": 1e100, "int": 10_i64.pow(18), "on": true, "none": null}),
            _ => expected,
        };
        assert_eq!(read, expected, "{form}");
    }
}

#[test]
fn what_yaml_1_1_makes_of_a_text_is_refused_where_it_cannot_be() {
    let error = |text: &str| parse_value("config", text).unwrap_err().to_string();
    for (text, expected) in [
        (
            "a: 1\nb: 0777777777777777777777777",
            "config: b: the integer 0777777777777777777777777 is larger than 64 bits",
        ),
        (
            "a: [0x1_0000_0000_0000_0000]",
            "the integer 0x1_0000_0000_0000_0000 is larger than 64 bits; put it in quotes if it is a text",
        ),
        ("yes: 1\nb: 2\ntrue: 3", "two keys that are both the boolean true"),
        ("a: {<<: 1}", "<<: expected a mapping or a list of mappings, found the number 1"),
        ("a: {<<: [1]}", "<<: expected a mapping or a list of mappings, found the number 1"),
    ] {
        let message = error(text);
        assert!(message.contains(expected), "{text:?} gave {message:?}");
    }
}

fn any_text() -> BoxedStrategy<String> {
    let words = tricky_texts().into_iter().filter(|text| text.len() < 200).collect::<Vec<_>>();
    prop_oneof![
        proptest::sample::select(words),
        proptest::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter),
        proptest::collection::vec(
            proptest::sample::select(
                " \t\n\r:#-?!&*%@`'\"|>[]{},=<~\\0179aexo_.+/\u{85}\u{2028}\u{feff}\u{e9}"
                    .chars()
                    .collect::<Vec<_>>()
            ),
            0..14
        )
        .prop_map(String::from_iter),
        "[-+]?[0-9]{1,3}[:._e,x-]{0,2}[0-9]{0,3}[:._eE+]{0,2}[0-9]{0,2}",
    ]
    .boxed()
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => any_text().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let key = prop_oneof![8 => any_text().prop_map(Value::from), 1 => any::<i64>().prop_map(Value::from)];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Sequence),
            proptest::collection::vec((key, inner), 0..5)
                .prop_map(|entries| Value::Mapping(entries.into_iter().collect())),
        ]
    })
}

/// Many values for one Python, as starting it takes longer than reading them all.
#[test]
fn any_value_survives() {
    let mut runner = TestRunner::default();
    let strategy = any_value();
    let values: Vec<_> = (0..1_500).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    assert_all_survive(&values);
}
