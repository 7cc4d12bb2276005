import Anthropic from '@anthropic-ai/sdk';
import { userMessage } from '@holdfast/testing';
import { type Bench, p50AndP95 } from '../bench.ts';
import { CHUNK_CHARS, type Script } from '../scripted-model.ts';

const RUNS = 3;
const CHUNKS = 150;
const EVERY_MS = 20;

export const deltaBench: Bench = {
  name: 'delta',
  about: 'a piece of the model’s answer → its delta in the official SDK’s event loop',
  async run(stage) {
    const { platform, model, api } = await stage.arena();
    const { beta } = new Anthropic({ apiKey: platform.apiKey, baseURL: platform.apiUrl });
    const samples: number[] = [];
    for (let run = 0; run < RUNS; run++) {
      const session = await api.setup.session();
      const script: Script = { id: `${session}-delta`, chunks: CHUNKS, everyMs: EVERY_MS };
      const stream = await beta.sessions.events.stream(session, { event_deltas: ['agent.message'] });
      await beta.sessions.events.send(session, { events: [userMessage(JSON.stringify(script))] });
      const { chunksAt } = await model.call(script.id);
      let seenChars = 0;
      for await (const event of stream) {
        const at = performance.now();
        if (event.type === 'session.status_idle') break;
        if (event.type !== 'event_delta' || event.delta.type !== 'content_delta') continue;
        // One delta may carry several pieces: each of them arrived now.
        const before = seenChars / CHUNK_CHARS;
        seenChars += event.delta.content.text.length;
        for (const sentAt of chunksAt.slice(before, Math.floor(seenChars / CHUNK_CHARS))) samples.push(at - sentAt);
      }
      if (seenChars !== CHUNKS * CHUNK_CHARS) throw new Error(`${seenChars} characters came as deltas`);
    }
    return p50AndP95(
      'model chunk sent → delta at the SDK client',
      samples,
      { p50: 4, p95: 10 },
      `${samples.length} pieces, one each ${EVERY_MS} ms`,
    );
  },
};
