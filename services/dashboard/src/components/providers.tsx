'use client';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { type CSSProperties, type ReactNode, useState } from 'react';
import { Toaster } from 'sonner';
import { ApiError } from '../lib/api.ts';

/** The palette's, so that toasts follow the theme that was chosen here. */
const TOAST_COLORS = {
  '--normal-bg': 'var(--color-panel)',
  '--normal-text': 'var(--color-ink)',
  '--normal-border': 'var(--color-line)',
  '--success-bg': 'var(--color-accent-soft)',
  '--success-text': 'var(--color-accent)',
  '--success-border': 'var(--color-line)',
  '--error-bg': 'var(--color-bad-soft)',
  '--error-text': 'var(--color-bad)',
  '--error-border': 'var(--color-line)',
} as CSSProperties;

export function Providers({ children }: { children: ReactNode }) {
  const [client] = useState(
    () =>
      new QueryClient({
        defaultOptions: {
          queries: {
            staleTime: 1_000,
            // What the server refused will be refused again.
            retry: (failures, error) =>
              failures < 3 && (!(error instanceof ApiError) || error.status === 0 || error.status >= 500),
          },
        },
      }),
  );
  return (
    <QueryClientProvider client={client}>
      {children}
      {/* Not at the end of the page, where messages are written. */}
      <Toaster position="top-center" closeButton richColors style={TOAST_COLORS} />
    </QueryClientProvider>
  );
}
