import type { LiveDelta } from '@holdfast/contracts';
import { parseFrames } from '@holdfast/testing';
import { describe, expect, it } from '@jest/globals';
import { type Previews, SessionTail, type SseBatch, type TailedStream } from './session-tail.ts';

/** A stream that keeps what it is sent. */
class Listener implements TailedStream {
  cursor = 0;
  readonly previews: Previews;
  previewId: string | null = null;
  previewChars = 0;
  #bytes = '';

  constructor(tail: SessionTail, previews: Previews = { 'agent.message': 'text' }) {
    this.previews = previews;
    this.cursor = tail.deliveredVersion;
    tail.hold(this);
    tail.attach(this);
  }

  deliver(batch: SseBatch): void {
    this.cursor = batch.toVersion;
  }

  writePreview(bytes: Buffer): boolean {
    this.#bytes += bytes.toString();
    return true;
  }

  /** What the previews say, each message by its id; a delta of a message that was never begun is `lost`. */
  get seen(): Record<string, string> {
    const texts: Record<string, string> = {};
    for (const { event, data } of parseFrames(this.#bytes).frames) {
      if (event === 'event_start') texts[(data['event'] as { id: string }).id] = '';
      if (event !== 'event_delta') continue;
      const id = data['event_id'] as string;
      texts[id] = `${texts[id] ?? 'lost:'}${(data['delta'] as { content: { text: string } }).content.text}`;
    }
    return texts;
  }
}

function delta(
  eventId: string,
  sequence: number,
  text: string,
  eventType: LiveDelta['eventType'] = 'agent.message',
): LiveDelta {
  return { eventId, eventType, generation: 1, sequence, text };
}

function frame(version: number, type: string): SseBatch {
  return { fromVersion: version, toVersion: version, frames: [{ version, type, bytes: Buffer.from('') }] };
}

describe('previews of a session whose readers come and go', () => {
  it('gives each stream the beginning of the message that is open now, whoever came before', () => {
    const tail = new SessionTail('sesn_1');
    const first = new Listener(tail);
    tail.deliver(frame(1, 'span.model_request_start'));
    tail.delta(delta('sevt_a', 1, 'old'));
    // It is shown the open message when it comes, and no delta of that message follows.
    const second = new Listener(tail);
    tail.deliver(frame(2, 'agent.message'));
    tail.deliver(frame(3, 'span.model_request_start'));
    tail.delta(delta('sevt_b', 1, 'new'));
    tail.delta(delta('sevt_b', 2, 'er'));
    expect(first.seen).toEqual({ sevt_a: 'old', sevt_b: 'newer' });
    expect(second.seen).toEqual({ sevt_a: 'old', sevt_b: 'newer' });
  });

  it('leaves nothing out for those who come while the text grows', () => {
    const tail = new SessionTail('sesn_1');
    const first = new Listener(tail);
    tail.deliver(frame(1, 'span.model_request_start'));
    tail.delta(delta('sevt_a', 1, 'one '));
    const second = new Listener(tail);
    tail.delta(delta('sevt_a', 2, 'two '));
    const third = new Listener(tail);
    tail.delta(delta('sevt_a', 3, 'three'));
    for (const listener of [first, second, third]) expect(listener.seen).toEqual({ sevt_a: 'one two three' });
  });

  it('shows thinking to those who asked for it: that it began, or its text', () => {
    const tail = new SessionTail('sesn_1');
    const [words, start, text] = [
      new Listener(tail),
      new Listener(tail, { 'agent.message': 'text', 'agent.thinking': 'start' }),
      new Listener(tail, { 'agent.thinking': 'text' }),
    ];
    tail.deliver(frame(1, 'span.model_request_start'));
    tail.delta(delta('sevt_t', 1, '', 'agent.thinking'));
    tail.delta(delta('sevt_t', 2, 'hm', 'agent.thinking'));
    const late = new Listener(tail, { 'agent.thinking': 'text' });
    tail.delta(delta('sevt_t', 3, '!', 'agent.thinking'));
    tail.delta(delta('sevt_a', 1, 'So'));
    tail.delta(delta('sevt_t', 4, 'late', 'agent.thinking'));
    expect(words.seen).toEqual({ sevt_a: 'So' });
    expect(start.seen).toEqual({ sevt_t: '', sevt_a: 'So' });
    for (const listener of [text, late]) expect(listener.seen).toEqual({ sevt_t: 'hm!' });
  });
});
