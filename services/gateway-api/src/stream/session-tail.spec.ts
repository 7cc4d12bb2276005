import type { LiveDelta } from '@holdfast/contracts';
import { parseFrames } from '@holdfast/testing';
import { describe, expect, it } from '@jest/globals';
import { SessionTail, type SseBatch, type TailedStream } from './session-tail.ts';

/** A stream that keeps what it is sent. */
class Listener implements TailedStream {
  cursor = 0;
  readonly wantsDeltas = true;
  previewId: string | null = null;
  previewChars = 0;
  #bytes = '';

  constructor(tail: SessionTail) {
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
  get previews(): Record<string, string> {
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

function delta(eventId: string, sequence: number, text: string): LiveDelta {
  return { eventId, eventType: 'agent.message', generation: 1, sequence, text };
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
    expect(first.previews).toEqual({ sevt_a: 'old', sevt_b: 'newer' });
    expect(second.previews).toEqual({ sevt_a: 'old', sevt_b: 'newer' });
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
    for (const listener of [first, second, third]) expect(listener.previews).toEqual({ sevt_a: 'one two three' });
  });
});
