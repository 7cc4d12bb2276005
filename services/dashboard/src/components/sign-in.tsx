'use client';
import { useRouter } from 'next/navigation';
import { useEffect, useEffectEvent, useRef, useState } from 'react';
import { ApiError, api, messageOf } from '../lib/api.ts';
import { Mark } from './mark.tsx';
import { Button, Field, Input, Panel } from './ui.tsx';

/** With an API key, or at once with the token of a one-time link, which stands in the fragment so that no log has it. */
export function SignIn({ target }: { target: string }) {
  const router = useRouter();
  const [key, setKey] = useState('');
  const [busy, setBusy] = useState<'key' | 'link'>();
  const [failure, setFailure] = useState<string>();
  const redeemed = useRef(false);

  const signIn = async (body: { api_key: string } | { link_token: string }): Promise<void> => {
    setBusy('link_token' in body ? 'link' : 'key');
    setFailure(undefined);
    try {
      await api('/sign-in', { body });
      router.replace(target);
      router.refresh();
    } catch (error) {
      const refused = error instanceof ApiError && error.status === 401;
      if (!refused) setFailure(messageOf(error));
      else
        setFailure(
          'link_token' in body
            ? 'This link was used or has run out. Sign in with an API key.'
            : 'This API key is not valid.',
        );
      setBusy(undefined);
    }
  };

  const redeemLink = useEffectEvent(() => {
    const token = new URLSearchParams(location.hash.slice(1)).get('token');
    if (token === null || redeemed.current) return;
    redeemed.current = true;
    history.replaceState(null, '', location.pathname + location.search);
    void signIn({ link_token: token });
  });
  useEffect(() => redeemLink(), []);

  return (
    <main className="grid min-h-dvh place-items-center p-4">
      <div className="w-full max-w-sm space-y-6">
        <div className="flex items-center justify-center gap-2.5 text-lg font-semibold tracking-tight">
          <Mark /> Holdfast
        </div>
        <Panel className="p-6">
          <h1 className="text-lg font-semibold tracking-tight">Sign in</h1>
          <p className="mt-1 text-sm text-soft">With an API key of your workspace.</p>
          {/* Sent before the page is alive it must not put the key into the address: by POST, and without a name. */}
          <form
            method="post"
            className="mt-5 space-y-4"
            onSubmit={(event) => {
              event.preventDefault();
              void signIn({ api_key: key.trim() });
            }}
          >
            <Field label="API key" error={failure}>
              <Input
                type="password"
                autoComplete="current-password"
                placeholder="hf_…"
                value={key}
                onChange={(event) => setKey(event.target.value)}
                maxLength={200}
                required
              />
            </Field>
            <Button look="primary" className="w-full" type="submit" busy={busy !== undefined}>
              {busy === 'link' ? 'Signing you in…' : 'Sign in'}
            </Button>
          </form>
        </Panel>
        <p className="px-2 text-center text-xs text-balance text-soft">
          The first key is in <code className="font-mono">.env</code> as{' '}
          <code className="font-mono">HOLDFAST_API_KEY</code>. <code className="font-mono">bin/up --detach</code> prints
          a link that signs you in once.
        </p>
      </div>
    </main>
  );
}
