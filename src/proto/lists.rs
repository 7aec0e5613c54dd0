//! Answers that lists are read from and written to, with items that were encoded before.
//!
//! A kubelet asks for all pods and containers more than once a second, for ever, and between two calls next to nothing
//! changes. So who keeps an item keeps its bytes too, and an answer is their concatenation. On the wire it is what the
//! generated message would be: field 1, repeated; `build.rs` puts these types in the place of the generated ones.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};

use super::cri::{Container, PodSandbox};

/// Of the items, in all answers here.
const ITEMS: u32 = 1;

/// An item as it stands in an answer: with its key and its length.
pub fn encode(item: &impl Message) -> Bytes {
    let mut field = Vec::with_capacity(message::encoded_len(ITEMS, item));
    message::encode(ITEMS, item, &mut field);
    field.into()
}

/// Items that [`encode`] has made, one after another.
pub fn concatenate<'a>(items: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let mut all = Vec::with_capacity(items.clone().map(Bytes::len).sum());
    items.for_each(|item| all.extend_from_slice(item));
    all.into()
}

/// An answer: a reader finds items in the field that bears the generated one's name, a writer gives encoded ones.
macro_rules! answer {
    ($(#[$doc:meta])* $name:ident { $items:ident: $item:ty }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $name {
            /// As decoded; what is here is written after what is encoded.
            pub $items: Vec<$item>,
            encoded: Bytes,
        }

        impl $name {
            /// Of what [`concatenate`] has made.
            pub fn encoded(encoded: Bytes) -> Self {
                Self { $items: Vec::new(), encoded }
            }
        }

        impl Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.encoded);
                message::encode_repeated(ITEMS, &self.$items, buf);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                context: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    ITEMS => message::merge_repeated(wire_type, &mut self.$items, buf, context),
                    _ => skip_field(wire_type, tag, buf, context),
                }
            }

            fn encoded_len(&self) -> usize {
                self.encoded.len() + message::encoded_len_repeated(ITEMS, &self.$items)
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

answer! {
    /// See CRI's message of that name.
    ListContainersResponse { containers: Container }
}

answer! {
    /// See CRI's message of that name.
    ListPodSandboxResponse { items: PodSandbox }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(number: usize) -> Container {
        let labels = [("app".to_owned(), "x".repeat(number))].into();
        Container { id: format!("{number:064x}"), labels, created_at: 7, ..Default::default() }
    }

    #[test]
    fn encoded_items_and_plain_ones_are_the_same_message() {
        // Items below and above the length that one byte tells.
        let items: Vec<Container> = [0, 1, 100, 300].map(container).to_vec();
        let plain = ListContainersResponse { containers: items.clone(), ..Default::default() };
        let bytes: Vec<Bytes> = items.iter().map(encode).collect();
        let encoded = ListContainersResponse::encoded(concatenate(bytes.iter()));
        assert_eq!(encoded.encode_to_vec(), plain.encode_to_vec());
        assert_eq!(encoded.encoded_len(), plain.encoded_len());
        let read = ListContainersResponse::decode(encoded.encode_to_vec().as_slice()).expect("a message");
        assert_eq!(read, plain);
    }

    #[test]
    fn no_item_is_no_byte_and_what_a_later_api_adds_is_skipped() {
        assert!(ListPodSandboxResponse::encoded(concatenate([].iter())).encode_to_vec().is_empty());
        let mut message = encode(&PodSandbox { id: "a".into(), ..Default::default() }).to_vec();
        prost::encoding::string::encode(9, &"unknown".to_owned(), &mut message);
        let read = ListPodSandboxResponse::decode(message.as_slice()).expect("a message");
        assert_eq!(read.items.len(), 1);
    }
}
