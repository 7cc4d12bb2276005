import { describe, expect, it } from '@jest/globals';
import { markersOf, nextStep } from './script.ts';

describe('the demo model', () => {
  it('takes markers in order, one step each, brackets and all', () => {
    expect(markersOf('please RUN[echo [a] $((1+2))] then WRITE[x.txt|hello|world] ASK[lookup]')).toEqual([
      { kind: 'RUN', body: 'echo [a] $((1+2))' },
      { kind: 'WRITE', body: 'x.txt|hello|world' },
      { kind: 'ASK', body: 'lookup' },
    ]);
    const prompt = 'RUN[ls] WRITE[a|b|c] ASK[t]';
    expect(nextStep(prompt, 0, null).call).toEqual({ name: 'bash', input: { command: 'ls' } });
    expect(nextStep(prompt, 1, 'x').call).toEqual({ name: 'write', input: { file_path: 'a', content: 'b|c' } });
    expect(nextStep(prompt, 2, 'x').call?.name).toBe('t');
    expect(nextStep(prompt, 3, 'the result')).toMatchObject({
      call: null,
      text: 'Done. The last result was:\nthe result',
    });
  });

  it('streams slowly, errs on demand, and says how to use it', () => {
    expect(nextStep('SLOW[3]', 0, null)).toMatchObject({ text: 'word1 word2 word3', wordMs: 100, call: null });
    expect(nextStep('SLOW[2] RUN[ls]', 0, null)).toMatchObject({ text: 'word1 word2', call: { name: 'bash' } });
    expect(nextStep('ERR[529]', 0, null).errorStatus).toBe(529);
    expect(nextStep('hello', 0, null).text).toMatch(/^You said: hello\n\n.*RUN\[/s);
    expect(markersOf('RUN[unclosed')).toEqual([]);
  });
});
