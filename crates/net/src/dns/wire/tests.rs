//! Messages beside those of another implementation, and by hand where it has no opinion.

use hickory_proto::op::{Edns as TheirEdns, Message, MessageType, OpCode, Query as TheirQuery};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record as TheirRecord, RecordType};
use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(TheirQuery::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = TheirEdns::new();
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

#[test]
fn queries_are_read() {
    let bytes = query("WWW.Web.shop.", RecordType::SRV, Some(4096));
    let read = Query::read(&bytes).unwrap();
    assert_eq!(read.name.as_str(), "www.web.shop");
    assert_eq!((read.kind, read.class, read.asked.id), (kind::SRV, CLASS_IN, 0x1234));
    assert_eq!(read.asked.edns, Some(Edns { payload: 4096, dnssec: true, version: 0 }));
    assert!(read.wants_recursion());
    let bytes = query(".", RecordType::NS, None);
    let read = Query::read(&bytes).unwrap();
    assert_eq!((read.name.as_str(), read.asked.edns), ("", None));
    // A dot within a label is no border.
    let bytes = query("a\\.b.c.", RecordType::A, None);
    assert_eq!(Query::read(&bytes).unwrap().name.as_str(), "a?b.c");
}

/// Changes one byte of a good query.
#[track_caller]
fn check_malformed(at: usize, byte: u8, expected: Option<Rcode>) {
    let mut bytes = query("web.", RecordType::A, Some(1232));
    bytes[at] = byte;
    let got = match Query::read(&bytes) {
        Ok(_) => panic!("understood"),
        Err(Malformed::Silent) => None,
        Err(Malformed::Told { id: 0x1234, rcode, .. }) => Some(rcode),
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(got, expected);
}

#[test]
fn what_is_no_query() {
    check_malformed(2, 0x81, None);
    check_malformed(2, 0x28, Some(Rcode::NotImp));
    check_malformed(5, 0, Some(Rcode::FormErr));
    check_malformed(5, 2, Some(Rcode::FormErr));
    check_malformed(7, 1, Some(Rcode::FormErr));
    check_malformed(9, 1, Some(Rcode::FormErr));
    check_malformed(11, 2, Some(Rcode::FormErr));
    // A pointer, a reserved length, a label beyond the end.
    check_malformed(12, 0xc0, Some(Rcode::FormErr));
    check_malformed(12, 0x40, Some(Rcode::FormErr));
    check_malformed(12, 63, Some(Rcode::FormErr));
    // An OPT record that is not of the root.
    check_malformed(21, 1, Some(Rcode::FormErr));
    let bytes = query("web.", RecordType::A, None);
    for len in 0..HEADER_LEN {
        assert!(matches!(Query::read(&bytes[..len]), Err(Malformed::Silent)));
    }
    for len in HEADER_LEN..bytes.len() {
        assert!(matches!(Query::read(&bytes[..len]), Err(Malformed::Told { .. })));
    }
}

#[test]
fn names_have_a_limit() {
    let name = |labels: usize, last: usize| {
        let mut bytes = query("x.", RecordType::A, None)[..HEADER_LEN].to_vec();
        for _ in 0..labels {
            bytes.push(63);
            bytes.extend([b'a'; 63]);
        }
        bytes.push(u8::try_from(last).unwrap());
        bytes.extend(vec![b'a'; last]);
        bytes.extend([0, 0, 1, 0, 1]);
        Query::read(&bytes).map(|query| query.name.as_str().len()).ok()
    };
    // 3 labels of 63 and one of 61 are 255 bytes on the wire, 253 as text.
    assert_eq!(name(3, 61), Some(253));
    assert_eq!(name(3, 62), None);
    assert_eq!(name(4, 1), None);
}

#[test]
fn answers_are_understood_by_others() {
    let bytes = query("web.", RecordType::ANY, Some(4096));
    let query = Query::read(&bytes).unwrap();
    let mut out = vec![1; 7];
    let mut writer = Writer::new(&mut out, &query.asked, Edns::limit(query.asked.edns));
    let record = |ttl_s, data| Record { ttl_s, data };
    assert!(writer.answer(&record(1, Data::A([10, 0, 0, 1].into()))));
    assert!(writer.answer(&record(0, Data::Aaaa("fd00::1".parse().unwrap()))));
    assert!(
        writer.answer(&record(0, Data::Srv { port: 80, target: "1.web.warren.internal".into() }))
    );
    assert!(writer.answer(&record(0, Data::Ptr("web.warren.internal".into()))));
    writer.authority(&record(0, Data::Soa));
    writer.additional("1.web.warren.internal", &record(0, Data::A([10, 0, 0, 2].into())));
    writer.finish(Rcode::NoError, true);
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    assert!(message.metadata.recursion_desired && !message.metadata.truncation);
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let answers: Vec<(Name, u32, RData)> =
        message.answers.into_iter().map(|r| (r.name, r.ttl, r.data)).collect();
    let target = name("1.web.warren.internal.");
    assert_eq!(
        answers,
        [
            (name("web."), 1, RData::A(A::new(10, 0, 0, 1))),
            (name("web."), 0, RData::AAAA(AAAA("fd00::1".parse().unwrap()))),
            (name("web."), 0, RData::SRV(SRV::new(0, 1, 80, target.clone()))),
            (name("web."), 0, RData::PTR(PTR(name("web.warren.internal.")))),
        ]
    );
    let apex = name("warren.internal.");
    let soa = RData::SOA(SOA::new(apex.clone(), apex.clone(), 1, 3600, 600, 86_400, 0));
    assert_eq!(message.authorities, [TheirRecord::from_rdata(apex, 0, soa)]);
    assert_eq!(
        message.additionals,
        [TheirRecord::from_rdata(target, 0, RData::A(A::new(10, 0, 0, 2)))]
    );
    let edns = message.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (1232, true));
}

#[test]
fn what_does_not_fit_is_left_out() {
    for payload in [None, Some(0), Some(600), Some(65_535)] {
        let bytes = query("tasks.web.", RecordType::A, payload);
        let query = Query::read(&bytes).unwrap();
        let limit = Edns::limit(query.asked.edns);
        assert_eq!(limit, usize::from(payload.unwrap_or(0)).clamp(512, 1232));
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, &query.asked, limit);
        let record = Record { ttl_s: 0, data: Data::A([10, 0, 0, 1].into()) };
        let fit = (0..1000).take_while(|_| writer.answer(&record)).count();
        writer.additional("web", &record);
        writer.finish(Rcode::NoError, true);
        assert!(out.len() <= limit && out.len() > limit - 16, "{} of {limit}", out.len());
        let message = Message::from_vec(&out).unwrap();
        assert!(message.metadata.truncation);
        assert_eq!((message.answers.len(), message.additionals.len()), (fit, 0));
    }
}

#[test]
fn a_name_that_cannot_be_written_takes_nothing_with_it() {
    let bytes = query("x.", RecordType::PTR, None);
    let query = Query::read(&bytes).unwrap();
    for name in ["", "a..b", &"x".repeat(64), &"x.".repeat(130), "a."] {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, &query.asked, 512);
        assert!(!writer.answer(&Record { ttl_s: 0, data: Data::Ptr(name.into()) }), "{name}");
        writer.additional(name, &Record { ttl_s: 0, data: Data::A([1, 1, 1, 1].into()) });
        writer.finish(Rcode::NoError, false);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!((message.answers.len(), message.additionals.len()), (0, 0));
    }
}

/// The answer of a server: `answers` with their ttl, an SOA with ttl and minimum, an OPT.
fn response(answers: &[u32], soa: Option<(u32, u32)>, nx: bool) -> (Vec<u8>, Vec<u8>) {
    let asked = query("www.Example.com.", RecordType::A, Some(1232));
    let mut message = Message::from_vec(&asked).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.authoritative = true;
    let owner = Name::from_ascii("www.Example.com.").unwrap();
    for ttl in answers {
        let data = RData::A(A::new(192, 0, 2, 1));
        message.add_answer(TheirRecord::from_rdata(owner.clone(), *ttl, data));
    }
    if let Some((ttl, minimum)) = soa {
        let zone = Name::from_ascii("example.com.").unwrap();
        let data = RData::SOA(SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum));
        message.add_authority(TheirRecord::from_rdata(zone, ttl, data));
    }
    if nx {
        message.metadata.response_code = hickory_proto::op::ResponseCode::NXDomain;
    }
    let read = Query::read(&asked).unwrap();
    let question = read.asked.question.to_vec();
    (message.to_vec().unwrap(), question)
}

#[test]
fn how_long_an_answer_may_be_kept() {
    let ttl = |answers: &[u32], soa, nx| {
        let (bytes, question) = response(answers, soa, nx);
        let response = Response::read(&bytes, 0x1234, &question).unwrap();
        (response.ttl_s, response.is_negative())
    };
    assert_eq!(ttl(&[300, 60], None, false), (Some(60), false));
    assert_eq!(ttl(&[300], Some((20, 30)), false), (Some(20), false));
    assert_eq!(ttl(&[], Some((900, 30)), true), (Some(30), true));
    assert_eq!(ttl(&[], Some((10, 30)), false), (Some(10), true));
    // Without an SOA nothing says how long there is none.
    assert_eq!(ttl(&[], None, true), (None, true));
    assert_eq!(ttl(&[], None, false), (None, true));
    assert_eq!(ttl(&[0, 60], None, false), (None, false));
    assert_eq!(ttl(&[u32::MAX], None, false), (None, false));
}

#[test]
fn only_the_answer_to_the_question_is_one() {
    let (bytes, question) = response(&[60], None, false);
    assert!(Response::read(&bytes, 0x1234, &question).is_ok());
    assert_eq!(Response::read(&bytes, 0x1235, &question), Err(Misfit::Foreign));
    let other = query("www.example.org.", RecordType::A, None);
    let other = Query::read(&other).unwrap().asked.question.to_vec();
    assert_eq!(Response::read(&bytes, 0x1234, &other), Err(Misfit::Foreign));
    let mut kind = question.clone();
    let at = kind.len() - 3;
    kind[at] = 65;
    assert_eq!(Response::read(&bytes, 0x1234, &kind), Err(Misfit::Foreign));
    let asked = query("www.example.com.", RecordType::A, None);
    assert_eq!(Response::read(&asked, 0x1234, &question), Err(Misfit::Foreign));
    for len in 0..bytes.len() {
        assert!(Response::read(&bytes[..len], 0x1234, &question).is_err(), "{len}");
    }
    let mut refused = bytes[..HEADER_LEN].to_vec();
    refused[3] = 1;
    refused[4..].fill(0);
    assert_eq!(Response::read(&refused, 0x1234, &question), Err(Misfit::Broken));
}

#[test]
fn an_answer_is_handed_on_in_the_askers_words() {
    let (bytes, question) = response(&[300, 60], Some((100, 200)), false);
    let kept = Response::read(&bytes, 0x1234, &question).unwrap();
    let edns = Some(Edns { payload: 4096, dnssec: false, version: 0 });
    let upper = question.to_ascii_uppercase();
    let asked = Asked { id: 7, flags: flag::RECURSION_DESIRED, question: &upper, edns };
    let mut out = Vec::new();
    kept.write(&mut out, &asked, 50, 1232);
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(message.metadata.id, 7);
    assert!(!message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(message.queries[0].name.to_ascii(), "WWW.EXAMPLE.COM.");
    let ttls: Vec<u32> =
        message.answers.iter().chain(&message.authorities).map(|r| r.ttl).collect();
    assert_eq!(ttls, [250, 10, 50]);
    assert!(message.edns.is_some());
    kept.write(&mut out, &Asked { edns: None, ..asked }, 1000, 512);
    let message = Message::from_vec(&out).unwrap();
    assert!(message.edns.is_none() && message.answers.iter().all(|record| record.ttl == 0));
    // Too long: as many as fit, and the asker comes again over TCP. The question takes 33 bytes,
    // each answer 16, an OPT record 11.
    for (limit, answers) in [(44, 0), (59, 0), (60, 1), (75, 1), (76, 2)] {
        kept.write(&mut out, &asked, 0, limit);
        let message = Message::from_vec(&out).unwrap();
        assert!(message.metadata.truncation && message.edns.is_some() && out.len() <= limit);
        assert_eq!((message.answers.len(), message.authorities.len()), (answers, 0), "{limit}");
    }
}

#[test]
fn queries_of_ours_are_understood_by_others() {
    let asked = query("Example.com.", RecordType::TXT, None);
    let question = Query::read(&asked).unwrap().asked.question.to_vec();
    let bytes = write_query(9, flag::CHECKING_DISABLED, &question, Some(true));
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!((message.metadata.id, message.queries.len()), (9, 1));
    assert!(message.metadata.recursion_desired && message.metadata.checking_disabled);
    assert_eq!(
        message.edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
        Some((1232, true))
    );
    assert!(Message::from_vec(&write_query(9, 0, &question, None)).unwrap().edns.is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = Query::read(&bytes);
        let _ = Response::read(&bytes, 0, &[]);
    }

    #[test]
    fn names_are_read_as_others_do(name in "([a-zA-Z0-9_-]{1,20}\\.){1,8}") {
        // Theirs has opinions on hyphens that the wire does not.
        prop_assume!(Name::from_ascii(&name).is_ok());
        let bytes = query(&name, RecordType::A, None);
        let read = Query::read(&bytes).unwrap();
        prop_assert_eq!(read.name.as_str(), name.trim_end_matches('.').to_ascii_lowercase());
    }
}
